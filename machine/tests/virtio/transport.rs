use retrovisor_machine::kvm::VirtioModel;

use crate::driver::*;

fn rng() -> VirtioModel {
    VirtioModel::rng(MEMORY_BYTES).unwrap()
}

fn bare() -> Driver {
    let mut driver = Driver::start(rng());
    driver.set(STATUS, 0);
    driver
}

#[test]
fn a_device_says_what_it_is() {
    let mut driver = bare();
    assert_eq!(driver.get(0), u32::from_le_bytes(*b"virt"));
    assert_eq!(driver.get(4), 2);
    assert_eq!(driver.get(8), 4, "a source of entropy");
    driver.set(QUEUE_SEL, 1);
    assert_eq!(driver.get(QUEUE_NUM_MAX), 0, "it has one queue");
    driver.set(DEVICE_FEATURES_SEL, 1);
    assert_eq!(driver.get(DEVICE_FEATURES) & 1, 1, "version 1");
    driver.set(DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.get(DEVICE_FEATURES), 0);
}

#[test]
fn features_that_are_not_offered_are_refused_and_so_is_a_driver_of_the_legacy_kind() {
    let mut driver = bare();
    for (low, high, accepted) in
        [(0, 1, true), (0, 0, false), (0, 3, false), (1 << 28, 1, true), (1, 1, false)]
    {
        driver.set(STATUS, 0);
        driver.set(STATUS, ACKNOWLEDGE | DRIVER);
        for (sel, value) in [(0, low), (1, high)] {
            driver.set(DRIVER_FEATURES_SEL, sel);
            driver.set(DRIVER_FEATURES, value);
        }
        driver.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(driver.get(STATUS) & FEATURES_OK != 0, accepted, "{low:#x} {high:#x}");
        driver.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(driver.get(STATUS) & DRIVER_OK != 0, accepted);
    }
}

#[test]
fn a_queue_is_ready_only_where_memory_is_and_then_stays() {
    let mut driver = bare();
    driver.set(QUEUE_READY, 1);
    assert_eq!(driver.get(QUEUE_READY), 0, "no features yet");
    let mut driver = Driver::start(rng());
    driver.set(QUEUE_READY, 0);
    for register in [QUEUE_DESC, QUEUE_AVAIL, QUEUE_USED] {
        driver.set_up_queue();
        driver.set(register + 4, 1);
        assert_eq!(driver.get(QUEUE_READY), 1);
        driver.set(QUEUE_READY, 0);
        driver.set(register + 4, 1);
        driver.set(QUEUE_READY, 1);
        assert_eq!(driver.get(QUEUE_READY), 0, "4 GiB is past the end of memory");
    }
}

#[test]
fn the_interrupt_stays_until_it_is_acknowledged_and_a_reset_takes_it_away() {
    let mut driver = Driver::start(rng());
    let ask = |driver: &mut Driver| {
        driver.offer(&[Buffer { at: BUFFERS, bytes: 64, write: true }]);
        driver.set(NOTIFY, 0);
    };
    ask(&mut driver);
    assert!(driver.model.interrupt());
    driver.set(INTERRUPT_ACK, 2);
    assert!(driver.model.interrupt(), "another one was acknowledged");
    assert!(driver.acknowledge());
    ask(&mut driver);
    assert!(driver.model.interrupt());
    driver.set(STATUS, 0);
    assert!(!driver.model.interrupt());
    assert_eq!((driver.get(STATUS), driver.get(INTERRUPT_STATUS)), (0, 0));
    // A driver that polls wants no interrupt.
    let mut driver = Driver::start(rng());
    driver.put(AVAILABLE, &1_u16.to_le_bytes());
    ask(&mut driver);
    assert!(!driver.model.interrupt());
    assert_eq!(driver.answers(), [64]);
}

#[test]
fn an_invalid_ring_asks_for_a_reset_and_a_reset_helps() {
    let mut driver = Driver::start(rng());
    driver.put(AVAILABLE + 2, &(QUEUE_SIZE + 1).to_le_bytes());
    driver.set(NOTIFY, 0);
    assert_eq!(driver.get(STATUS) & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(driver.get(INTERRUPT_STATUS), 2, "the configuration changed");
    driver.set(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(driver.get(STATUS) & NEEDS_RESET, NEEDS_RESET);
    driver.put(AVAILABLE + 2, &[0; 2]);
    let mut driver = Driver::start(driver.model);
    driver.offer(&[Buffer { at: BUFFERS, bytes: 64, write: true }]);
    driver.set(NOTIFY, 0);
    assert_eq!(driver.answers(), [64]);
}

#[test]
fn what_the_device_writes_is_in_the_dirty_log() {
    let mut driver = Driver::start(rng());
    drop(driver.model.take_dirty());
    driver.offer(&[
        Buffer { at: BUFFERS + 4000, bytes: 200, write: true },
        Buffer { at: BUFFERS + 0x5000, bytes: 1, write: true },
    ]);
    driver.set(NOTIFY, 0);
    let dirty: Vec<u64> = driver.model.take_dirty().iter().map(|gfn| gfn.0).collect();
    assert_eq!(dirty, [USED >> 12, BUFFERS >> 12, (BUFFERS >> 12) + 1, (BUFFERS >> 12) + 5]);
    assert!(driver.model.take_dirty().is_empty());
}
