//! What a soak looks at in the server: memory, descriptors, and what its metrics say about itself.

use std::time::{Duration, Instant};

use crate::engine::plan::Api;
use crate::report::format;
use crate::scenario::soak::socket::Socket;
use crate::server_process::ServerProcess;

/// The server from the outside.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) server: Option<ServerProcess>,
    pub(super) api: Option<Api>,
}

/// The server's metrics at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics(String);

impl Metrics {
    /// The sum of the samples of `name` that have all of these labels; `None` where there is none.
    pub(super) fn sum(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let samples = self.0.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_it =
                rest.starts_with([' ', '{']) && labels.iter().all(|label| rest.contains(label));
            is_it.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        samples.fold(None, |sum, sample| Some(sum.unwrap_or_default() + sample))
    }
}

impl Watch {
    /// Scrapes `/metrics`; `None` where nobody has told where that is.
    ///
    /// # Errors
    ///
    /// It is not answered.
    pub(super) fn metrics(&self) -> Result<Option<Metrics>, String> {
        let Some(api) = &self.api else { return Ok(None) };
        let request =
            format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", api.host);
        let text = Socket::connect(api.address).and_then(|mut socket| {
            socket.send_raw(request.as_bytes())?;
            socket.text()
        });
        match text {
            Ok(text) if text.starts_with("HTTP/1.1 200") => Ok(Some(Metrics(text))),
            Ok(text) => Err(format!(
                "/metrics is answered with {:?}",
                text.lines().next().unwrap_or_default()
            )),
            Err(end) => Err(format!("/metrics is not answered: {end}")),
        }
    }

    /// Open descriptors of the server.
    pub(super) fn descriptors(&self) -> Option<u64> {
        match self.server {
            Some(server) => server.descriptors(),
            None => self.metrics().ok()??.sum("process_open_fds", &[]).map(|count| count as u64),
        }
    }

    /// Resident memory of the server, in bytes: what is anonymous, where its process is known.
    pub(super) fn memory(&self) -> Option<u64> {
        match self.server {
            Some(server) => Some(server.usage().memory),
            None => self
                .metrics()
                .ok()??
                .sum("process_resident_memory_bytes", &[])
                .map(|bytes| bytes as u64),
        }
    }

    /// Waits until no more descriptors are open than `most`. Returns how many are.
    pub(super) fn descriptors_within(&self, most: u64, patience: Duration) -> Option<u64> {
        let end = Instant::now() + patience;
        loop {
            let open = self.descriptors()?;
            if open <= most || Instant::now() >= end {
                return Some(open);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Memory at quiet points: when, in seconds, and how many bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Vec<(f64, f64)>);

/// Points that a trend takes at least, and that are kept at most: it looks at all pairs of them.
const MIN_POINTS: usize = 3;
const MAX_POINTS: usize = 512;

impl Memory {
    pub(super) fn add(&mut self, at: f64, bytes: u64) {
        if self.0.len() == MAX_POINTS {
            // Every second one will do.
            let mut index = 0;
            self.0.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
        self.0.push((at, bytes as f64));
    }

    /// Bytes by which memory has grown from the first point to the last, by the trend: the median of the
    /// slopes between all pairs of points (Theil and Sen), which a single high point does not move.
    /// `None` where there are too few of them.
    pub(super) fn growth(&self) -> Option<f64> {
        let (first, last) = (self.0.first()?, self.0.last()?);
        if self.0.len() < MIN_POINTS {
            return None;
        }
        let mut slopes = Vec::new();
        for (index, (at, bytes)) in self.0.iter().enumerate() {
            for (later, more) in &self.0[index + 1..] {
                slopes.push((more - bytes) / (later - at).max(f64::EPSILON));
            }
        }
        slopes.sort_by(f64::total_cmp);
        let middle = slopes.len() / 2;
        let slope = match slopes.len() % 2 {
            0 => f64::midpoint(slopes[middle - 1], slopes[middle]),
            _ => slopes[middle],
        };
        Some(slope * (last.0 - first.0))
    }

    /// For a person.
    pub(super) fn told(&self) -> String {
        let bytes = || self.0.iter().map(|(_, bytes)| *bytes);
        let ends = bytes().reduce(f64::min).zip(bytes().reduce(f64::max));
        let range = ends.map_or("nothing".to_owned(), |(least, most)| {
            format!("{} to {}", format::bytes(least), format::bytes(most))
        });
        let points = format::counted(self.0.len() as u64, "quiet point");
        match self.growth() {
            Some(growth) => format!("{} by the trend; {range} at {points}", format::bytes(growth)),
            None => format!("too short for a trend; {range} at {points}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(points: &[f64]) -> Option<f64> {
        let mut memory = Memory::default();
        for (at, bytes) in points.iter().enumerate() {
            memory.add(at as f64, *bytes as u64);
        }
        memory.growth()
    }

    #[test]
    fn growth_is_that_of_the_trend_and_not_of_a_single_point() {
        assert_eq!(growth(&[10.0, 20.0]), None);
        assert_eq!(growth(&[50.0, 50.0, 50.0, 50.0]), Some(0.0));
        assert_eq!(growth(&[0.0, 10.0, 20.0, 30.0]), Some(30.0));
        assert_eq!(growth(&[50.0, 50.0, 50.0, 950.0, 50.0, 50.0]), Some(0.0));
        assert_eq!(growth(&[40.0, 30.0, 20.0]), Some(-20.0));
    }

    #[test]
    fn trend_of_many_points_is_that_of_every_second() {
        let points: Vec<f64> = (0..3 * MAX_POINTS).map(|at| at as f64 * 100.0).collect();
        let growth = growth(&points).expect("there are enough");
        assert!((growth - 100.0 * (points.len() - 1) as f64).abs() < 1.0, "{growth}");
    }

    #[test]
    fn samples_are_summed_over_what_has_the_labels() {
        let text = "# TYPE closed counter\nclosed{code=\"1000\",initiator=\"local\"} 3\n\
                    closed{code=\"1011\",initiator=\"local\"} 2\nclosed_more 9\nopen 7\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum("closed", &[]), Some(5.0));
        assert_eq!(metrics.sum("closed", &["code=\"1011\""]), Some(2.0));
        assert_eq!(metrics.sum("open", &[]), Some(7.0));
        assert_eq!(metrics.sum("nothing", &[]), None);
    }
}
