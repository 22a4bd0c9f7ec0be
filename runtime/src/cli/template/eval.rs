//! Renders templates.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::TemplateError;
use super::parse::Node;
use super::parse::Operand;
use super::parse::Pipeline;
use super::parse::Term;

/// Longest text of one value: `range` in `range` could make it very long.
const LONGEST: usize = 64 << 20;

struct Scope<'a> {
    root: &'a Value,
    dot: Value,
    /// Later ones hide earlier ones of the same name.
    variables: Vec<(String, Value)>,
}

pub(super) fn render(nodes: &[Node], value: &Value) -> Result<String, TemplateError> {
    let mut scope = Scope { root: value, dot: value.clone(), variables: Vec::new() };
    let mut out = String::new();
    scope.block(nodes, &mut out)?;
    Ok(out)
}

fn call(reason: impl Into<String>) -> TemplateError {
    TemplateError::Call(reason.into())
}

impl Scope<'_> {
    fn block(&mut self, nodes: &[Node], out: &mut String) -> Result<(), TemplateError> {
        for node in nodes {
            if out.len() > LONGEST {
                return Err(call("the text is too long"));
            }
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Action { bind: Some(name), pipeline } => {
                    let value = self.pipeline(pipeline)?;
                    self.variables.push((name.clone(), value));
                }
                Node::Action { bind: None, pipeline } => out.push_str(&text(&self.pipeline(pipeline)?)),
                Node::If { condition, then, otherwise } => {
                    let chosen = if truth(&self.pipeline(condition)?) { then } else { otherwise };
                    self.inner(chosen, None, Vec::new(), out)?;
                }
                Node::With { value, then, otherwise } => {
                    let value = self.pipeline(value)?;
                    if truth(&value) {
                        self.inner(then, Some(value), Vec::new(), out)?;
                    } else {
                        self.inner(otherwise, None, Vec::new(), out)?;
                    }
                }
                Node::Range { key, item, over, body, otherwise } => {
                    let items = items(self.pipeline(over)?)?;
                    if items.is_empty() {
                        self.inner(otherwise, None, Vec::new(), out)?;
                    }
                    for (index, value) in items {
                        let mut bound: Vec<(String, Value)> = Vec::new();
                        bound.extend(key.clone().map(|key| (key, index)));
                        bound.extend(item.clone().map(|item| (item, value.clone())));
                        self.inner(body, Some(value), bound, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A block with variables of its own and, if there is one, another dot.
    fn inner(
        &mut self,
        nodes: &[Node],
        dot: Option<Value>,
        bound: Vec<(String, Value)>,
        out: &mut String,
    ) -> Result<(), TemplateError> {
        let outer = dot.map(|dot| std::mem::replace(&mut self.dot, dot));
        let known = self.variables.len();
        self.variables.extend(bound);
        let result = self.block(nodes, out);
        self.variables.truncate(known);
        if let Some(outer) = outer {
            self.dot = outer;
        }
        result
    }

    fn pipeline(&self, pipeline: &Pipeline) -> Result<Value, TemplateError> {
        let mut last = None;
        for command in pipeline {
            last = Some(self.command(command, last)?);
        }
        last.ok_or_else(|| call("a pipeline is empty"))
    }

    fn command(&self, terms: &[Term], piped: Option<Value>) -> Result<Value, TemplateError> {
        let Some((first, rest)) = terms.split_first() else { return Err(call("a command is empty")) };
        if let Operand::Function(name) = &first.operand {
            let mut arguments = rest.iter().map(|term| self.term(term)).collect::<Result<Vec<_>, _>>()?;
            arguments.extend(piped);
            return function(name, arguments);
        }
        // Docker's method on a row: .Label "key".
        if let ([key], Some("Label")) = (rest, first.fields.last().map(String::as_str)) {
            let labels = Term { operand: Operand::Dot, fields: vec!["Labels".to_owned()] };
            return Ok(label(&self.term(&labels)?, &text(&self.term(key)?)));
        }
        if !rest.is_empty() || piped.is_some() {
            return Err(call("a value is called like a function"));
        }
        self.term(first)
    }

    fn term(&self, term: &Term) -> Result<Value, TemplateError> {
        let mut value = match &term.operand {
            Operand::Dot => self.dot.clone(),
            Operand::Variable(name) if name.is_empty() => self.root.clone(),
            Operand::Variable(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                known.ok_or_else(|| call(format!("no variable ${name}")))?.1.clone()
            }
            Operand::Constant(value) => value.clone(),
            Operand::Group(pipeline) => self.pipeline(pipeline)?,
            Operand::Function(name) => function(name, Vec::new())?,
        };
        for name in &term.fields {
            value = field(value, name)?;
        }
        Ok(value)
    }
}

/// A label of a row, whose labels are text as docker prints them: `a=b,c=d`.
fn label(labels: &Value, key: &str) -> Value {
    match labels {
        Value::String(text) => {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            json!(pairs.filter(|(name, _)| *name == key).map(|(_, value)| value).next().unwrap_or_default())
        }
        Value::Object(all) => all.get(key).cloned().unwrap_or_else(|| json!("")),
        _ => json!(""),
    }
}

fn field(value: Value, name: &str) -> Result<Value, TemplateError> {
    let missing = |there: String| TemplateError::Field { name: name.to_owned(), there };
    match value {
        Value::Object(mut all) => match all.remove(name) {
            Some(value) => Ok(value),
            None if is_struct(&all) => Err(missing(all.keys().cloned().collect::<Vec<_>>().join(", "))),
            None => Ok(Value::Null),
        },
        // A field of nothing: a Go program's pointer that is nil.
        Value::Null => Ok(Value::Null),
        _ => Err(missing("none: it is no object".to_owned())),
    }
}

/// Whether the keys are ours, not a user's.
fn is_struct(all: &Map<String, Value>) -> bool {
    !all.is_empty() && all.keys().all(|key| key.starts_with(char::is_uppercase))
}

/// The items of a list, or the entries of an object in their order, with index or key.
fn items(value: Value) -> Result<Vec<(Value, Value)>, TemplateError> {
    match value {
        Value::Array(items) => {
            Ok(items.into_iter().enumerate().map(|(index, item)| (json!(index), item)).collect())
        }
        Value::Object(all) => Ok(all.into_iter().map(|(key, value)| (json!(key), value)).collect()),
        Value::Null => Ok(Vec::new()),
        _ => Err(call("range over a value that is neither a list nor an object")),
    }
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(all) => !all.is_empty(),
    }
}

/// A value as Go prints it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(" ")),
        Value::Object(all) => {
            let entries = all.iter().map(|(key, value)| format!("{key}:{}", text(value)));
            format!("map[{}]", entries.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

fn function(name: &str, arguments: Vec<Value>) -> Result<Value, TemplateError> {
    let wrong = || call(format!("{name} gets other arguments than these"));
    match (name, arguments.as_slice()) {
        ("json", [value]) => Ok(json!(value.to_string())),
        ("upper", [Value::String(text)]) => Ok(json!(text.to_uppercase())),
        ("lower", [Value::String(text)]) => Ok(json!(text.to_lowercase())),
        ("title", [Value::String(text)]) => {
            let mut letters = text.chars();
            let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
            Ok(json!(first + letters.as_str()))
        }
        ("join", [Value::Array(items), Value::String(between)]) => {
            Ok(json!(items.iter().map(text).collect::<Vec<_>>().join(between)))
        }
        ("join", [Value::Null, Value::String(_)]) => Ok(json!("")),
        ("split", [Value::String(text), Value::String(at)]) => {
            Ok(json!(text.split(at.as_str()).collect::<Vec<_>>()))
        }
        ("truncate", [Value::String(text), Value::Number(length)]) => {
            let length = length.as_u64().and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
            Ok(json!(text.chars().take(length).collect::<String>()))
        }
        ("len", [value]) => match value {
            Value::String(text) => Ok(json!(text.len())),
            Value::Array(items) => Ok(json!(items.len())),
            Value::Object(all) => Ok(json!(all.len())),
            Value::Null => Ok(json!(0)),
            _ => Err(wrong()),
        },
        ("index", [value, keys @ ..]) if !keys.is_empty() => {
            keys.iter().try_fold(value.clone(), |value, key| index(&value, key))
        }
        ("print", values) => Ok(json!(values.iter().map(text).collect::<String>())),
        ("println", values) => Ok(json!(values.iter().map(text).collect::<Vec<_>>().join(" ") + "\n")),
        ("printf", [Value::String(format), values @ ..]) => printf(format, values).ok_or_else(wrong),
        ("not", [value]) => Ok(json!(!truth(value))),
        ("and", [first, rest @ ..]) => {
            Ok(rest.iter().fold(first, |one, other| if truth(one) { other } else { one }).clone())
        }
        ("or", [first, rest @ ..]) => {
            Ok(rest.iter().fold(first, |one, other| if truth(one) { one } else { other }).clone())
        }
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            Ok(json!(rest.iter().any(|other| text(other) == text(first))))
        }
        ("ne", [one, other]) => Ok(json!(text(one) != text(other))),
        ("lt" | "le" | "gt" | "ge", [Value::Number(one), Value::Number(other)]) => {
            let (one, other) = (one.as_f64().ok_or_else(wrong)?, other.as_f64().ok_or_else(wrong)?);
            Ok(json!(match name {
                "lt" => one < other,
                "le" => one <= other,
                "gt" => one > other,
                _ => one >= other,
            }))
        }
        (
            "json" | "upper" | "lower" | "title" | "join" | "split" | "truncate" | "index" | "printf" | "not",
            _,
        )
        | ("and" | "or" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "len", _) => Err(wrong()),
        _ => Err(call(format!("no function {name:?}"))),
    }
}

fn index(value: &Value, key: &Value) -> Result<Value, TemplateError> {
    match (value, key) {
        (Value::Array(items), Value::Number(number)) => {
            let at = number.as_u64().and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| items.get(at))
                .cloned()
                .ok_or_else(|| call(format!("index {number} of a list with {} items", items.len())))
        }
        (Value::Object(all), Value::String(key)) => Ok(all.get(key).cloned().unwrap_or(Value::Null)),
        (Value::Null, _) => Ok(Value::Null),
        _ => Err(call("index of a value that is neither a list nor an object")),
    }
}

/// `%s`, `%v`, `%d`, `%q` and `%%`, with a width for the first three.
fn printf(format: &str, values: &[Value]) -> Option<Value> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        if letters.peek() == Some(&'%') {
            out.extend(letters.next());
            continue;
        }
        let left = letters.next_if_eq(&'-').is_some();
        let mut width = String::new();
        while let Some(digit) = letters.next_if(char::is_ascii_digit) {
            width.push(digit);
        }
        let width: usize =
            if width.is_empty() { 0 } else { width.parse().ok().filter(|width| *width < 1000)? };
        let value = match letters.next()? {
            's' | 'v' | 'd' => text(values.next()?),
            'q' => values.next()?.to_string(),
            _ => return None,
        };
        if left {
            out.push_str(&format!("{value:<width$}"));
        } else {
            out.push_str(&format!("{value:>width$}"));
        }
    }
    Some(json!(out))
}
