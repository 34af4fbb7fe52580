//! What was used in the course of time, as a table for people, and whether it grew.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use super::sample::{MEASURES, Sample, THREADS};
use super::support::commit_of_the_daemon;

/// Of the whole time: what comes before is warming up. In an hour, ten minutes.
const PART: u32 = 6;
/// The most by which anything may differ at the end, in percent of what it was in the second part.
const MOST: u64 = 10;
/// Of threads or descriptors, that may come or go.
const HANDFUL: u64 = 4;

/// All samples.
#[derive(Debug)]
pub struct Report {
    samples: Vec<Sample>,
    length: Duration,
    operations: u64,
    failures: u64,
    /// Before and after.
    at_rest: [Vec<Sample>; 2],
}

/// One measure of one node, by its means in parts of the time. (What goes to and fro between two levels, as where a large file
/// takes the place of another, has a median that jumps.)
#[derive(Clone, Debug)]
struct Course {
    node: u64,
    name: &'static str,
    in_bytes: bool,
    parts: Vec<u64>,
}

impl Report {
    pub fn of(
        samples: Vec<Sample>,
        length: Duration,
        (operations, failures): (u64, u64),
        at_rest: [Vec<Sample>; 2],
    ) -> Self {
        Self { samples, length, operations, failures, at_rest }
    }

    /// Prints the table, and appends it to a file; likewise the samples.
    pub fn publish(&self, title: &str) {
        let title = format!("### {title}, commit {}\n\n", commit_of_the_daemon());
        let table = title + &self.table();
        println!("{table}");
        append("QUORUMFS_SOAK_MD", &(table + "\n"));
        append("QUORUMFS_SOAK_SAMPLES", &self.lines());
    }

    /// Panics where something has grown, or shrunk.
    ///
    /// Threads are compared at rest. Those for what blocks are woken in turn, so under load as many stay as the largest
    /// burst has needed, which says nothing about a leak.
    pub fn assert_steady(&self) {
        let mut grown = self.courses();
        grown.retain(|course| !course.is_steady() && course.name != MEASURES[THREADS].0);
        assert!(grown.is_empty(), "by more than {MOST}%: {grown:#?}");
        let [before, after] = self.threads_at_rest();
        let is_as_before = |(a, b): (&u64, &u64)| a.abs_diff(*b) <= (a * MOST / 100).max(HANDFUL);
        assert!(before.len() == 3 && after.len() == 3, "a daemon was gone: {before:?}, {after:?}");
        assert!(before.iter().zip(&after).all(is_as_before), "threads: {before:?}, {after:?}");
    }

    fn threads_at_rest(&self) -> [Vec<u64>; 2] {
        let threads = |sample: &Sample| sample.values[THREADS];
        self.at_rest.each_ref().map(|samples| samples.iter().map(threads).collect())
    }

    fn table(&self) -> String {
        let Self { operations, failures, .. } = self;
        let mut table = format!(
            "{operations} operations, {failures} of which failed although no daemon had been killed; node 3 was killed \
             now and then, and leadership moved. Means of each sixth of the time.\n\n"
        );
        table += "| node | what | 1 (warming up) | 2 | 3 | 4 | 5 | 6 | 6 to 2 |\n";
        table += "|---|---|---:|---:|---:|---:|---:|---:|---:|\n";
        for course in self.courses() {
            write!(table, "| {} | {} |", course.node, course.name).expect("memory");
            for part in &course.parts {
                write!(table, " {} |", course.shown(*part)).expect("memory");
            }
            let (before, after) = course.ends();
            let ratio = (after * 100).checked_div(before).unwrap_or(100);
            writeln!(table, " {ratio}% |").expect("memory");
        }
        let [before, after] = self.threads_at_rest();
        writeln!(table, "\nThreads of each at rest: {before:?} before, {after:?} afterwards.")
            .expect("memory");
        table
    }

    fn courses(&self) -> Vec<Course> {
        let mut courses = Vec::new();
        for node in 1..=3 {
            for (measure, (name, in_bytes)) in MEASURES.into_iter().enumerate() {
                let parts =
                    (0..PART).map(|part| self.mean(node, part, |sample| sample.values[measure]));
                courses.push(Course { node, name, in_bytes, parts: parts.collect() });
            }
        }
        courses
    }

    fn mean(&self, node: u64, part: u32, value: impl Fn(&Sample) -> u64) -> u64 {
        let from = self.length * part / PART;
        let to = self.length * (part + 1) / PART;
        let of_it = |sample: &&Sample| sample.node == node && sample.at > from && sample.at <= to;
        let values: Vec<_> = self.samples.iter().filter(of_it).map(value).collect();
        values.iter().sum::<u64>().checked_div(values.len() as u64).unwrap_or(0)
    }

    fn lines(&self) -> String {
        let names = MEASURES.map(|(name, _)| name).join("\t");
        let mut lines = format!("seconds\tnode\t{names}\tslab of the machine\n");
        for sample in &self.samples {
            let values = sample.values.map(|value| value.to_string()).join("\t");
            let Sample { at, node, kernel, .. } = sample;
            writeln!(lines, "{}\t{node}\t{values}\t{kernel}", at.as_secs()).expect("memory");
        }
        lines
    }
}

impl Course {
    /// In the second part and in the last one.
    fn ends(&self) -> (u64, u64) {
        (self.parts[1], self.parts[self.parts.len() - 1])
    }

    fn is_steady(&self) -> bool {
        let (before, after) = self.ends();
        // Less than a mebibyte, or a handful, is what one file or thread more makes.
        let least = if self.in_bytes { 1 << 20 } else { HANDFUL };
        before.abs_diff(after) <= (before * MOST / 100).max(least)
    }

    fn shown(&self, value: u64) -> String {
        if !self.in_bytes {
            return value.to_string();
        }
        let tenths = (value * 10) >> 20;
        format!("{}.{} MiB", tenths / 10, tenths % 10)
    }
}

fn append(variable: &str, text: &str) {
    let Some(path) = std::env::var_os(variable) else { return };
    let file = File::options().create(true).append(true).open(path);
    file.expect("the report").write_all(text.as_bytes()).expect("write");
}
