//! A guest in the specification's words against the whole device, and random ones against its state.

mod guest;
mod hostile;
mod interleaved;
mod quiet;
mod random;
mod streams;

/// Byte `position` of every stream in these tests.
fn byte(position: usize) -> u8 {
    (position ^ (position >> 8) ^ (position >> 17)) as u8
}

/// Bytes `from` to `from + length` of a stream.
fn bytes(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(byte).collect()
}

/// Panics unless `data` is what a stream has at `from`.
fn check(data: &[u8], from: usize) {
    let wrong = data.iter().enumerate().find(|&(i, &b)| b != byte(from + i));
    assert_eq!(wrong, None, "a stream differs at {from} + the first number");
}
