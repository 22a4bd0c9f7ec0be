//! PCI addresses in a process's environment, from the host's to the guest's. Pure.
//!
//! Kubernetes device plugins tell a container which functions it was given in variables `PCIDEVICE_NAME` (a
//! list of addresses, separated by commas) and `PCIDEVICE_NAME_INFO` (JSON with addresses as keys and values).
//! An address is translated where the whole of a word is one; text that merely contains one stays.

use std::collections::BTreeMap;

use serde_json::Value;

const PREFIX: &str = "PCIDEVICE_";

/// Host address → guest address, both as sysfs writes them: "0000:00:03.0".
pub type PciAddresses = BTreeMap<String, String>;

/// The environment with the addresses of its PCI functions translated. What names another function stays.
pub fn translate(environment: &[String], addresses: &PciAddresses) -> Vec<String> {
    environment.iter().map(|variable| variable_of(variable, addresses)).collect()
}

fn variable_of(variable: &str, addresses: &PciAddresses) -> String {
    let Some((name, value)) = variable.split_once('=') else { return variable.to_owned() };
    if !name.starts_with(PREFIX) {
        return variable.to_owned();
    }
    let value = match serde_json::from_str(value) {
        Ok(json @ (Value::Object(_) | Value::Array(_))) => json_of(json, addresses).to_string(),
        _ => list_of(value, addresses),
    };
    format!("{name}={value}")
}

fn list_of(list: &str, addresses: &PciAddresses) -> String {
    let words: Vec<&str> = list.split(',').map(|word| word_of(word, addresses)).collect();
    words.join(",")
}

fn word_of<'a>(word: &'a str, addresses: &'a PciAddresses) -> &'a str {
    // Hex digits come in either case.
    addresses.get(&word.trim().to_ascii_lowercase()).map_or(word, String::as_str)
}

fn json_of(json: Value, addresses: &PciAddresses) -> Value {
    match json {
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (word_of(&key, addresses).to_owned(), json_of(value, addresses)))
            .collect(),
        Value::Array(values) => values.into_iter().map(|value| json_of(value, addresses)).collect(),
        Value::String(word) => Value::String(word_of(&word, addresses).to_owned()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(variable: &str) -> String {
        let addresses = [("0000:00:03.0", "0000:00:05.0"), ("0000:00:05.0", "0000:00:03.0")];
        let addresses = addresses.map(|(host, guest)| (host.to_owned(), guest.to_owned())).into();
        translate(&[variable.to_owned()], &addresses).remove(0)
    }

    #[test]
    fn addresses_in_a_list_are_swapped_and_not_chained() {
        assert_eq!(
            translated("PCIDEVICE_INTEL_COM_NIC=0000:00:03.0,0000:00:05.0,0000:81:00.1"),
            "PCIDEVICE_INTEL_COM_NIC=0000:00:05.0,0000:00:03.0,0000:81:00.1"
        );
    }

    #[test]
    fn json_is_translated_by_its_words() {
        assert_eq!(
            translated(r#"PCIDEVICE_X_INFO={"0000:00:03.0":{"generic":{"deviceID":"0000:00:03.0","n":3}}}"#),
            r#"PCIDEVICE_X_INFO={"0000:00:05.0":{"generic":{"deviceID":"0000:00:05.0","n":3}}}"#
        );
    }

    #[test]
    fn text_that_contains_an_address_is_not_one() {
        for same in ["PCIDEVICE_X=x0000:00:03.0", "PATH=0000:00:03.0", "PCIDEVICE_X=", "PCIDEVICE_X"] {
            assert_eq!(translated(same), same);
        }
        assert_eq!(translated("PCIDEVICE_X=0000:00:03.00"), "PCIDEVICE_X=0000:00:03.00");
    }
}
