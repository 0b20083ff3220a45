//! What was it measured on? Reads `/proc` and leaves out what would name the machine's owner.

use super::model::Machine;

/// Describes this machine. `None` where `/proc` does not tell, as on any system but Linux.
#[must_use]
pub fn detect() -> Option<Machine> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    describe(
        &read("/proc/cpuinfo")?,
        &read("/proc/meminfo")?,
        &read("/proc/sys/kernel/osrelease")?,
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    )
}

/// Makes a [`Machine`] of the texts that `/proc` holds.
fn describe(cpuinfo: &str, meminfo: &str, osrelease: &str, cores: usize) -> Option<Machine> {
    let cpu = value_of(cpuinfo, "model name")
        // ARM has no model name, only the numbers of its maker.
        .or_else(|| value_of(cpuinfo, "Model"))
        .map_or_else(
            || std::env::consts::ARCH.to_owned(),
            |name| name.split_whitespace().collect::<Vec<_>>().join(" "),
        );
    let memory_kib: u64 = value_of(meminfo, "MemTotal")?.split_whitespace().next()?.parse().ok()?;
    Some(Machine {
        cpu,
        cores,
        memory_bytes: memory_kib.saturating_mul(1024),
        kernel: format!("Linux {}", osrelease.trim()),
    })
}

/// The value of the first line `key : value`.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_is_read_from_the_texts_of_proc() {
        let machine = describe(
            "processor\t: 0\nmodel name\t: Example(R)  CPU @ 2.0GHz\nprocessor\t: 1\nmodel name\t: other\n",
            "MemTotal:       24689764 kB\nMemFree: 1 kB\n",
            "6.1.0-13-amd64\n",
            2,
        );
        let expected = Machine {
            cpu: "Example(R) CPU @ 2.0GHz".to_owned(),
            cores: 2,
            memory_bytes: 24_689_764 * 1024,
            kernel: "Linux 6.1.0-13-amd64".to_owned(),
        };
        assert_eq!(machine, Some(expected));
    }

    #[test]
    fn processor_without_a_name_is_called_by_its_architecture() {
        let machine = describe("processor : 0\n", "MemTotal: 1024 kB\n", "6.1", 1).unwrap();
        assert_eq!(machine.cpu, std::env::consts::ARCH);
    }

    #[test]
    fn machine_is_unknown_where_its_memory_is() {
        assert_eq!(describe("", "nonsense", "6.1", 1), None);
        assert_eq!(describe("", "MemTotal: many kB", "6.1", 1), None);
    }
}
