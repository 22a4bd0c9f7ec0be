//! Translates the host's PCI addresses in a process's environment into the guest's. Pure.
//!
//! Kubernetes device plugins tell a container which functions it was given in variables `PCIDEVICE_NAME` (a
//! list of addresses, separated by commas) and `PCIDEVICE_NAME_INFO` (JSON with addresses as keys and values).
//! An item of a list or a JSON string is translated if all of it is an address; text that contains an address among
//! other characters stays.
//!
//! No value is lost. An address that no assigned function has stays as it is, and may be the guest's address of
//! another function. If two members of a JSON object get one key that way, both stay, and the member of the assigned
//! function is last, because parsers use the last one (RFC 8259 §4).

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::runtime::Process;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde::ser::SerializeMap;
use serde_json::Value;

const PREFIX: &str = "PCIDEVICE_";

/// The guest's address of each host address, both as sysfs writes them: "0000:00:03.0".
pub type PciAddresses = BTreeMap<String, String>;

/// Translates the addresses in a process's environment.
pub fn translate_process(process: &mut Process, addresses: &PciAddresses) {
    if !addresses.is_empty() {
        let environment = process.env().as_deref().unwrap_or_default();
        let environment = environment.iter().map(|variable| variable_of(variable, addresses)).collect();
        process.set_env(Some(environment));
    }
}

fn variable_of(variable: &str, addresses: &PciAddresses) -> String {
    let Some((name, value)) = variable.split_once('=') else { return variable.to_owned() };
    if !name.starts_with(PREFIX) {
        return variable.to_owned();
    }
    let value = match serde_json::from_str::<Json>(value) {
        Ok(json @ (Json::Object(_) | Json::Array(_))) => {
            serde_json::to_string(&json.translated(addresses)).expect("every key is a string")
        }
        _ => list_of(value, addresses),
    };
    format!("{name}={value}")
}

fn list_of(list: &str, addresses: &PciAddresses) -> String {
    let words: Vec<&str> = list.split(',').map(|word| word_of(word, addresses).unwrap_or(word)).collect();
    words.join(",")
}

/// The guest's address, if the text is the host's address of an assigned function.
fn word_of<'a>(word: &str, addresses: &'a PciAddresses) -> Option<&'a str> {
    // Hex digits may be upper or lower case.
    addresses.get(&word.trim().to_ascii_lowercase()).map(String::as_str)
}

/// A JSON value whose objects keep every member in order, also members with the same key.
enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    String(String),
    Other(Value),
}

impl Json {
    fn translated(self, addresses: &PciAddresses) -> Self {
        match self {
            Self::Object(members) => {
                let (mut others, mut assigned) = (Vec::new(), Vec::new());
                let keys: Vec<String> = members.iter().map(|(key, _)| key.clone()).collect();
                for (key, value) in members {
                    let value = value.translated(addresses);
                    match word_of(&key, addresses) {
                        // After the member that has this key and stays.
                        Some(guest) if keys.iter().any(|other| other == guest) => {
                            assigned.push((guest.to_owned(), value));
                        }
                        Some(guest) => others.push((guest.to_owned(), value)),
                        None => others.push((key, value)),
                    }
                }
                others.extend(assigned);
                Self::Object(others)
            }
            Self::Array(values) => {
                Self::Array(values.into_iter().map(|value| value.translated(addresses)).collect())
            }
            Self::String(word) => Self::String(word_of(&word, addresses).map_or(word, str::to_owned)),
            other @ Self::Other(_) => other,
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (key, value) in members {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
            Self::Array(values) => values.serialize(serializer),
            Self::String(word) => word.serialize(serializer),
            Self::Other(value) => value.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Json::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_str<E>(self, word: &str) -> Result<Json, E> {
        Ok(Json::String(word.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Other(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other(Value::Null))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated_by(variable: &str, addresses: &[(&str, &str)]) -> String {
        let owned = |(host, guest): &(&str, &str)| ((*host).to_owned(), (*guest).to_owned());
        variable_of(variable, &addresses.iter().map(owned).collect())
    }

    fn translated(variable: &str) -> String {
        translated_by(variable, &[("0000:00:03.0", "0000:00:05.0"), ("0000:00:05.0", "0000:00:03.0")])
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
    fn no_value_is_lost_when_two_functions_come_to_have_one_address() {
        let one = [("0000:00:03.0", "0000:00:05.0")];
        for members in [r#""0000:00:03.0":1,"0000:00:05.0":2"#, r#""0000:00:05.0":2,"0000:00:03.0":1"#] {
            let after = translated_by(&format!("PCIDEVICE_X_INFO={{{members}}}"), &one);
            assert_eq!(after, r#"PCIDEVICE_X_INFO={"0000:00:05.0":2,"0000:00:05.0":1}"#);
            let parsed: Value = serde_json::from_str(after.split_once('=').unwrap().1).unwrap();
            assert_eq!(parsed["0000:00:05.0"], 1, "parsers go by the assigned function");
        }
        let swapped = translated(r#"PCIDEVICE_X_INFO={"0000:00:03.0":1,"0000:00:05.0":[2,null,true,-1.5]}"#);
        let parsed: Value = serde_json::from_str(swapped.split_once('=').unwrap().1).unwrap();
        assert_eq!(parsed, serde_json::json!({"0000:00:05.0": 1, "0000:00:03.0": [2, null, true, -1.5]}));
    }

    #[test]
    fn text_that_contains_an_address_is_not_one() {
        for same in ["PCIDEVICE_X=x0000:00:03.0", "PATH=0000:00:03.0", "PCIDEVICE_X=", "PCIDEVICE_X"] {
            assert_eq!(translated(same), same);
        }
        assert_eq!(translated("PCIDEVICE_X=0000:00:03.00"), "PCIDEVICE_X=0000:00:03.00");
    }
}
