//! What a run waits for, and whether it has come. Counts and messages go in, a verdict comes out.

/// What has to be received for a run to end well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Text messages that have to come, in any order. A message meets one of them.
    pub texts: Vec<Expected>,
    /// Messages that have to come. Together with `texts`: most messages within which they do.
    pub count: Option<u64>,
}

/// A text message that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This text and nothing else.
    Whole(String),
    /// A text that holds this one.
    Part(String),
}

impl Expected {
    fn is_met_by(&self, message: &str) -> bool {
        match self {
            Self::Whole(text) => message == text,
            Self::Part(text) => message.contains(text.as_str()),
        }
    }

    /// As it was asked for.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Whole(text) | Self::Part(text) => text,
        }
    }
}

/// Whether there is more to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Open,
    Ended,
}

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Waiting,
    /// All that was awaited has come.
    Met,
    /// As many messages as allowed have come, and what was awaited is not among them.
    Missed,
}

/// What has come so far.
#[derive(Debug)]
pub(super) struct Progress {
    unmet: Vec<Expected>,
    expects_texts: bool,
    count: Option<u64>,
    sent: u64,
    received: u64,
}

impl Progress {
    pub(super) fn new(awaited: Awaited) -> Self {
        Self {
            expects_texts: !awaited.texts.is_empty(),
            unmet: awaited.texts,
            count: awaited.count,
            sent: 0,
            received: 0,
        }
    }

    /// One more message has been sent.
    pub(super) fn handle_sent(&mut self) {
        self.sent += 1;
    }

    /// One more message has come: a text, or a binary one.
    pub(super) fn handle_received(&mut self, text: Option<&str>) {
        self.received += 1;
        let met = |expected: &Expected| text.is_some_and(|text| expected.is_met_by(text));
        if let Some(index) = self.unmet.iter().position(met) {
            self.unmet.remove(index);
        }
    }

    /// The first text that has not come.
    pub(super) fn unmet(&self) -> Option<&Expected> {
        self.unmet.first()
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// How many messages are awaited: as many as were asked for, or else an answer to each that was
    /// sent.
    pub(super) fn wanted(&self) -> u64 {
        self.count.unwrap_or(self.sent)
    }

    pub(super) fn verdict(&self, input: Input) -> Verdict {
        if self.expects_texts {
            return match self.count {
                _ if self.unmet.is_empty() => Verdict::Met,
                Some(count) if self.received >= count => Verdict::Missed,
                _ => Verdict::Waiting,
            };
        }
        let is_met = match self.count {
            // Nobody knows how many answers there will be before the last line is sent.
            None | Some(0) => input == Input::Ended && self.received >= self.wanted(),
            Some(count) => self.received >= count,
        };
        if is_met { Verdict::Met } else { Verdict::Waiting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Expected {
        Expected::Whole(text.to_owned())
    }

    fn after(awaited: Awaited, sent: u64, received: &[&str]) -> Progress {
        let mut progress = Progress::new(awaited);
        for _ in 0..sent {
            progress.handle_sent();
        }
        for text in received {
            progress.handle_received(Some(text));
        }
        progress
    }

    #[test]
    fn without_a_wish_each_line_is_answered_once() {
        let verdict = |sent, received: &[&str], input| {
            after(Awaited::default(), sent, received).verdict(input)
        };
        assert_eq!(verdict(0, &[], Input::Open), Verdict::Waiting);
        assert_eq!(verdict(0, &[], Input::Ended), Verdict::Met);
        assert_eq!(verdict(2, &["a"], Input::Ended), Verdict::Waiting);
        assert_eq!(verdict(2, &["a", "b"], Input::Open), Verdict::Waiting);
        assert_eq!(verdict(2, &["a", "b"], Input::Ended), Verdict::Met);
    }

    #[test]
    fn count_is_met_as_soon_as_it_is_reached_and_none_when_all_is_sent() {
        let verdict = |count, received: &[&str], input| {
            let awaited = Awaited { texts: Vec::new(), count: Some(count) };
            after(awaited, 5, received).verdict(input)
        };
        assert_eq!(verdict(2, &["a"], Input::Ended), Verdict::Waiting);
        assert_eq!(verdict(2, &["a", "b"], Input::Open), Verdict::Met);
        assert_eq!(verdict(0, &[], Input::Open), Verdict::Waiting);
        assert_eq!(verdict(0, &[], Input::Ended), Verdict::Met);
    }

    #[test]
    fn texts_may_come_in_any_order_between_others() {
        let awaited = Awaited { texts: vec![whole("a"), whole("b"), whole("b")], count: None };
        let progress = after(awaited.clone(), 0, &["b", "c", "a"]);
        assert_eq!(progress.verdict(Input::Ended), Verdict::Waiting);
        assert_eq!(progress.unmet(), Some(&whole("b")));
        assert_eq!(after(awaited, 9, &["b", "a", "b"]).verdict(Input::Open), Verdict::Met);
    }

    #[test]
    fn text_is_whole_or_a_part() {
        let verdict = |expected| {
            let awaited = Awaited { texts: vec![expected], count: None };
            after(awaited, 0, &["hello world"]).verdict(Input::Open)
        };
        assert_eq!(verdict(whole("hello")), Verdict::Waiting);
        assert_eq!(verdict(whole("hello world")), Verdict::Met);
        assert_eq!(verdict(Expected::Part("lo wo".to_owned())), Verdict::Met);
    }

    #[test]
    fn text_that_is_not_among_so_many_messages_is_missed() {
        let awaited = Awaited { texts: vec![whole("c")], count: Some(2) };
        assert_eq!(after(awaited.clone(), 0, &["a"]).verdict(Input::Open), Verdict::Waiting);
        assert_eq!(after(awaited.clone(), 0, &["a", "b"]).verdict(Input::Open), Verdict::Missed);
        assert_eq!(after(awaited, 0, &["a", "c"]).verdict(Input::Open), Verdict::Met);
    }

    #[test]
    fn binary_message_counts_and_meets_no_text() {
        let mut progress = Progress::new(Awaited { texts: vec![whole("")], count: Some(2) });
        progress.handle_received(None);
        assert_eq!(progress.verdict(Input::Open), Verdict::Waiting);
        assert_eq!(progress.received(), 1);
    }
}
