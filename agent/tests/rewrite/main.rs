//! The rewrite of device lists against any lists and any devices: random ones, and what a fuzzer has found worth
//! keeping.

mod body;

/// xorshift64: reproducible.
fn random_bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..8 {
        next();
    }
    let length = next() % 600;
    (0..length).map(|_| next().to_le_bytes()[3]).collect()
}

#[test]
fn any_lists_are_rewritten_by_the_rules_or_refused() {
    for seed in 0..5000 {
        body::run(&random_bytes(seed));
    }
}

#[test]
fn what_once_went_wrong_does_not_again() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/rewrite");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty());
    for file in files {
        body::run(&std::fs::read(file).unwrap());
    }
}
