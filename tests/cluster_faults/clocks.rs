//! The time of day is for people and for times of files: no promise depends on it.

use std::fs;
use std::time::{Duration, SystemTime};

use super::machines::{Machines, has_clocks};
use super::support::{PATIENCE, wait_until, write_and_sync};

#[test]
fn a_clock_that_is_an_hour_off_harms_nobody() {
    if !has_clocks() {
        println!("not shown: libfaketime is not installed");
        return;
    }
    let machines = Machines::up_with_special(3);
    let wrong = machines.special();
    let dir = machines.mount(wrong);
    let started = SystemTime::now();
    for hours in [1_i64, -1] {
        machines.set_clock(hours * 3600);
        // It really is another time there: files say so.
        wait_until(PATIENCE, "the clock to be wrong", || {
            let file = dir.join(format!("at{hours}"));
            write_and_sync(&file, b"x").expect("it serves");
            let made = fs::metadata(&file).expect("stat").modified().expect("a time");
            let off = match made.duration_since(started) {
                Ok(ahead) => i64::try_from(ahead.as_secs()),
                Err(behind) => i64::try_from(behind.duration().as_secs()).map(|behind| -behind),
            };
            ((off.expect("hours") - hours * 3600).abs() < 600).then_some(())
        });
        for node in machines.all() {
            let file = machines.mount(node).join(format!("by{node}"));
            write_and_sync(&file, hours.to_string().as_bytes()).expect("everybody serves");
            assert_eq!(
                fs::read(dir.join(format!("by{node}"))).expect("read"),
                hours.to_string().as_bytes()
            );
        }
    }
    machines.settle();
    let status = machines.status(wrong).expect("it serves");
    // A lease that ran by that clock would not be over for an hour.
    assert!(Duration::from_millis(status.lease_ms) <= super::faults::SESSION_TTL);
}
