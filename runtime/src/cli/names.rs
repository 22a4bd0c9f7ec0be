//! Generates names for containers: an adjective and a noun.

use crate::store::StoreError;

const ADJECTIVES: &[&str] = &[
    "able", "agile", "amber", "ample", "apt", "azure", "bold", "brave", "bright", "brisk", "calm", "candid",
    "cheerful", "chilly", "clever", "cosy", "crisp", "daring", "deft", "eager", "early", "earnest", "fair",
    "fierce", "fleet", "fond", "frank", "gentle", "glad", "golden", "grand", "happy", "hardy", "hasty",
    "honest", "humble", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lucky", "merry", "mighty",
    "modest", "neat", "nimble", "noble", "patient", "placid", "proud", "quick", "quiet", "rapid", "ready",
    "silent", "silver", "sober", "steady", "stout", "sturdy", "subtle", "sunny", "swift", "tidy", "vivid",
    "wise",
];

const NOUNS: &[&str] = &[
    "acorn", "anchor", "arrow", "badger", "beacon", "birch", "bison", "brook", "canyon", "cedar", "cliff",
    "clover", "comet", "coral", "crane", "delta", "dune", "eagle", "ember", "falcon", "fern", "finch",
    "fjord", "fox", "garnet", "glacier", "grove", "harbor", "hawk", "hazel", "heron", "ibex", "island",
    "ivy", "jaguar", "juniper", "kestrel", "lagoon", "lantern", "larch", "lynx", "maple", "marten", "meadow",
    "meteor", "osprey", "otter", "owl", "pebble", "pine", "plover", "quartz", "raven", "reef", "ridge",
    "river", "robin", "sparrow", "spruce", "stork", "summit", "thistle", "tiger", "tulip", "valley",
    "willow", "wolf", "wren",
];

/// A name such as `brisk_otter`. With `attempt` above 0 a number makes it rarer still.
pub(super) fn generate(attempt: u32) -> Result<String, StoreError> {
    let id = crate::store::random_id().map_err(StoreError::Random)?;
    // The id is twelve hex digits: always a number.
    let number = usize::from_str_radix(&id, 16).unwrap_or_default();
    let adjective = ADJECTIVES[number % ADJECTIVES.len()];
    let noun = NOUNS[number / ADJECTIVES.len() % NOUNS.len()];
    Ok(match attempt {
        0 => format!("{adjective}_{noun}"),
        _ => format!("{adjective}_{noun}_{}", number % 10_000),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_valid_and_no_word_is_repeated() {
        assert_eq!(ADJECTIVES.iter().collect::<HashSet<_>>().len(), ADJECTIVES.len());
        assert_eq!(NOUNS.iter().collect::<HashSet<_>>().len(), NOUNS.len());
        for attempt in 0..3 {
            assert!(crate::spec::volume::is_name(&generate(attempt).unwrap()));
        }
    }
}
