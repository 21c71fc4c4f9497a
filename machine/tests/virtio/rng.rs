use retrovisor_machine::kvm::VirtioModel;

use crate::driver::*;

#[test]
fn random_numbers_fill_the_buffers_up_to_a_bound() {
    let mut driver = Driver::start(VirtioModel::rng(MEMORY_BYTES).unwrap());
    driver.offer(&[
        Buffer { at: BUFFERS, bytes: 32, write: true },
        Buffer { at: BUFFERS + 64, bytes: 32, write: true },
    ]);
    driver.offer(&[Buffer { at: BUFFERS + 4096, bytes: 1 << 20, write: true }]);
    driver.set(NOTIFY, 0);
    assert_eq!(driver.answers(), [64, 4096]);
    let bytes = driver.memory(BUFFERS, 96);
    assert!(bytes[..32] != [0; 32] && bytes[64..] != [0; 32] && bytes[..32] != bytes[64..]);
    assert_eq!(bytes[32..64], [0; 32]);
}

#[test]
fn buffers_that_cannot_be_written_get_nothing() {
    let mut driver = Driver::start(VirtioModel::rng(MEMORY_BYTES).unwrap());
    driver.offer(&[Buffer { at: BUFFERS, bytes: 32, write: false }]);
    driver.offer(&[Buffer { at: BUFFERS, bytes: 0, write: true }]);
    driver.set(NOTIFY, 0);
    assert_eq!(driver.answers(), [0, 0]);
    assert_eq!(driver.memory(BUFFERS, 32), [0; 32]);
}
