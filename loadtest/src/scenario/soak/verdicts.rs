//! What has to hold at every moment of a soak, how often it was looked at, and what broke it first.

use std::collections::BTreeMap;

use crate::report::format;
use crate::report::model::Check;

/// What has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Invariant {
    Loss,
    Order,
    SharedOrder,
    Repetition,
    Foreign,
    Content,
    Echo,
    Connections,
    Faults,
    Descriptors,
    Memory,
    Panics,
}

impl Invariant {
    /// As it is told in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Order => "order",
            Self::SharedOrder => "shared order",
            Self::Repetition => "repetition",
            Self::Foreign => "foreign",
            Self::Content => "content",
            Self::Echo => "echo",
            Self::Connections => "connections",
            Self::Faults => "faults",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Panics => "panics",
        }
    }

    /// What has to hold, for a person.
    pub(super) fn wanted(self) -> &'static str {
        match self {
            Self::Loss => "subscribers get all that is published once they are there",
            Self::Order => "each publisher's messages come in the order sent",
            Self::SharedOrder => "all subscribers of a channel get one order",
            Self::Repetition => "no message comes twice",
            Self::Foreign => "nobody gets what was sent to others, or by nobody",
            Self::Content => "messages arrive as they were sent",
            Self::Echo => "echoes come back, in order, as they were sent",
            Self::Connections => "nobody is refused or closed who does nothing wrong",
            Self::Faults => "who breaks a rule is ended as the rule says, and nobody else",
            Self::Descriptors => "at quiet points as many as in the beginning",
            Self::Memory => "flat at quiet points",
            Self::Panics => "none, and no Close 1011",
        }
    }
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Breach {
    pub(super) invariant: Invariant,
    /// Who, where, which numbers.
    pub(super) text: String,
}

#[derive(Debug, Default)]
struct Verdict {
    /// How often it was looked at.
    checked: u64,
    broken: u64,
    first: Option<String>,
    /// What was found where nothing is broken.
    remark: Option<String>,
}

/// How all invariants stand.
#[derive(Debug, Default)]
pub(super) struct Verdicts(BTreeMap<Invariant, Verdict>);

impl Verdicts {
    /// They were looked at so often, whatever was found.
    pub(super) fn count(&mut self, invariant: Invariant, times: u64) {
        self.0.entry(invariant).or_default().checked += times;
    }

    pub(super) fn remark(&mut self, invariant: Invariant, text: String) {
        self.0.entry(invariant).or_default().remark = Some(text);
    }

    pub(super) fn add(&mut self, breach: Breach) {
        let verdict = self.0.entry(breach.invariant).or_default();
        verdict.broken += 1;
        verdict.first.get_or_insert(breach.text);
    }

    /// How often anything was broken.
    pub(super) fn broken(&self) -> u64 {
        self.0.values().map(|verdict| verdict.broken).sum()
    }

    /// One for each invariant that was looked at.
    pub(super) fn checks(&self) -> Vec<Check> {
        let checks = self.0.iter().map(|(invariant, verdict)| {
            let found = match (&verdict.first, &verdict.remark) {
                (Some(first), _) if verdict.broken == 1 => first.clone(),
                (Some(first), _) => {
                    format!("broken {} times, first: {first}", format::count(verdict.broken))
                }
                (None, Some(remark)) => remark.clone(),
                (None, None) => format!("so in all {}", format::count(verdict.checked)),
            };
            Check {
                name: invariant.name(),
                wanted: invariant.wanted().to_owned(),
                found,
                passed: verdict.broken == 0,
            }
        });
        checks.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_breach_of_each_invariant_is_told_with_how_many_there_were() {
        let mut verdicts = Verdicts::default();
        verdicts.count(Invariant::Order, 1_234);
        for text in ["the first", "the second"] {
            verdicts.add(Breach { invariant: Invariant::Loss, text: text.to_owned() });
        }
        verdicts.remark(Invariant::Memory, "as it was".to_owned());
        let checks = verdicts.checks();
        let told: Vec<_> =
            checks.iter().map(|check| (check.name, check.passed, check.found.as_str())).collect();
        let expected = [
            ("loss", false, "broken 2 times, first: the first"),
            ("order", true, "so in all 1,234"),
            ("memory", true, "as it was"),
        ];
        assert_eq!(told, expected);
        assert_eq!(verdicts.broken(), 2);
    }
}
