//! Parses templates.

use serde_json::Value;
use serde_json::json;

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    /// Its value is printed, unless it is bound to a variable.
    Action {
        bind: Option<String>,
        pipeline: Pipeline,
    },
    If {
        condition: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipeline,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        key: Option<String>,
        item: Option<String>,
        over: Pipeline,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
}

/// Commands, each of which gets the result of the one before as its last argument.
pub(super) type Pipeline = Vec<Vec<Term>>;

/// An operand, with the fields that are taken of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Term {
    pub(super) operand: Operand,
    pub(super) fields: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    Dot,
    Variable(String),
    Constant(Value),
    Function(String),
    Group(Pipeline),
}

/// Most levels of parentheses and blocks.
const DEEPEST: usize = 50;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// `.A.B` or `.`, by its fields.
    Field(Vec<String>),
    Variable(String),
    Constant(Value),
    Open,
    Close,
    Pipe,
    Comma,
    Assign,
}

enum Piece {
    Text(String),
    Action(Vec<Token>),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    let pieces = split(&text)?;
    let mut pieces = pieces.into_iter();
    let (nodes, end) = block(&mut pieces, 0)?;
    match end {
        None => Ok(nodes),
        Some(end) => Err(format!("{} without a beginning", end.join(" "))),
    }
}

/// Splits into text and actions; `{{-` and `-}}` cut the white space beside them.
fn split(mut text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut cut = false;
    while let Some(start) = text.find("{{") {
        let mut before = &text[..start];
        let inner = &text[start + 2..];
        let end = inner.find("}}").ok_or("an action is not closed by }}")?;
        let (mut action, rest) = (&inner[..end], &inner[end + 2..]);
        if cut {
            before = before.trim_start();
        }
        if let Some(trimmed) = action.strip_prefix("- ") {
            before = before.trim_end();
            action = trimmed;
        }
        cut = action.ends_with(" -");
        let action = action.strip_suffix(" -").unwrap_or(action).trim();
        pieces.push(Piece::Text(before.to_owned()));
        if !action.starts_with("/*") {
            pieces.push(Piece::Action(tokens(action)?));
        }
        text = rest;
    }
    pieces.push(Piece::Text(if cut { text.trim_start() } else { text }.to_owned()));
    Ok(pieces)
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text;
    let word_of = |text: &str| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        text[..end].to_owned()
    };
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            c if c.is_whitespace() => {
                rest = &rest[c.len_utf8()..];
                continue;
            }
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Assign, 2),
            '.' => field(rest),
            '"' | '`' => string(rest, first)?,
            '$' => {
                let name = word_of(&rest[1..]);
                let length = 1 + name.len();
                (Token::Variable(name), length)
            }
            c if c.is_ascii_digit() || c == '-' => {
                let end =
                    rest[1..].find(|c: char| !c.is_ascii_digit() && c != '.').map_or(rest.len(), |at| at + 1);
                let number =
                    serde_json::from_str(&rest[..end]).map_err(|_| format!("{rest:?} is no number"))?;
                (Token::Constant(number), end)
            }
            c if c.is_alphabetic() || c == '_' => {
                let word = word_of(rest);
                let length = word.len();
                let constant = match word.as_str() {
                    "true" => Some(json!(true)),
                    "false" => Some(json!(false)),
                    "nil" => Some(Value::Null),
                    _ => None,
                };
                (constant.map_or(Token::Word(word), Token::Constant), length)
            }
            other => return Err(format!("{other:?} has no meaning in an action")),
        };
        found.push(token);
        rest = &rest[length..];
    }
    Ok(found)
}

/// A chain of fields, and its length.
fn field(text: &str) -> (Token, usize) {
    let mut fields = Vec::new();
    let mut at = 0;
    while text[at..].starts_with('.') {
        let rest = &text[at + 1..];
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if length == 0 {
            at += usize::from(at == 0);
            break;
        }
        fields.push(rest[..length].to_owned());
        at += 1 + length;
    }
    (Token::Field(fields), at.max(1))
}

fn string(text: &str, quote: char) -> Result<(Token, usize), String> {
    let open = || "a string is not closed".to_owned();
    if quote == '`' {
        let end = text[1..].find('`').ok_or_else(open)?;
        return Ok((Token::Constant(json!(&text[1..=end])), end + 2));
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => {
                let value = serde_json::from_str(&text[..=at].replace('\t', "\\t").replace('\n', "\\n"))
                    .map_err(|_| format!("{} is no string", &text[..=at]))?;
                return Ok((Token::Constant(value), at + 1));
            }
            c => escaped = c == '\\' && !escaped,
        }
    }
    Err(open())
}

/// Nodes up to an `else` or `end`, whose words are returned with them.
fn block(
    pieces: &mut std::vec::IntoIter<Piece>,
    depth: usize,
) -> Result<(Vec<Node>, Option<Vec<String>>), String> {
    if depth > DEEPEST {
        return Err("too many blocks in each other".to_owned());
    }
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.next() {
        let tokens = match piece {
            Piece::Text(text) if text.is_empty() => continue,
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(tokens) => tokens,
        };
        match tokens.first() {
            Some(Token::Word(word)) if word == "end" => return Ok((nodes, Some(vec![word.clone()]))),
            Some(Token::Word(word)) if word == "else" => {
                if tokens.len() > 1 {
                    return Err("else if: write {{else}}{{if …}} and one more {{end}}".to_owned());
                }
                return Ok((nodes, Some(vec![word.clone()])));
            }
            Some(Token::Word(word)) if ["if", "with", "range"].contains(&word.as_str()) => {
                nodes.push(compound(word, &tokens[1..], pieces, depth)?);
            }
            None => return Err("an action is empty".to_owned()),
            Some(Token::Variable(name)) if tokens.get(1) == Some(&Token::Assign) => {
                nodes.push(Node::Action { bind: Some(name.clone()), pipeline: whole(&tokens[2..])? });
            }
            Some(_) => nodes.push(Node::Action { bind: None, pipeline: whole(&tokens)? }),
        }
    }
    Ok((nodes, None))
}

fn compound(
    word: &str,
    tokens: &[Token],
    pieces: &mut std::vec::IntoIter<Piece>,
    depth: usize,
) -> Result<Node, String> {
    let (key, item, tokens) = match tokens {
        [Token::Variable(key), Token::Comma, Token::Variable(item), Token::Assign, rest @ ..] => {
            (Some(key.clone()), Some(item.clone()), rest)
        }
        [Token::Variable(item), Token::Assign, rest @ ..] => (None, Some(item.clone()), rest),
        rest => (None, None, rest),
    };
    if word != "range" && item.is_some() {
        return Err(format!("{word} with a variable; bind it before"));
    }
    let pipeline = whole(tokens)?;
    let (then, end) = block(pieces, depth + 1)?;
    let otherwise = match end.as_deref() {
        Some([end]) if end == "end" => Vec::new(),
        Some(_) => match block(pieces, depth + 1)? {
            (otherwise, Some(end)) if end == ["end"] => otherwise,
            _ => return Err(format!("{word} without an end")),
        },
        None => return Err(format!("{word} without an end")),
    };
    Ok(match word {
        "if" => Node::If { condition: pipeline, then, otherwise },
        "with" => Node::With { value: pipeline, then, otherwise },
        _ => Node::Range { key, item, over: pipeline, body: then, otherwise },
    })
}

fn whole(tokens: &[Token]) -> Result<Pipeline, String> {
    let (pipeline, rest) = pipeline(tokens, 0)?;
    if rest.is_empty() { Ok(pipeline) } else { Err("a ) too many, or a word out of place".to_owned()) }
}

fn pipeline(mut tokens: &[Token], depth: usize) -> Result<(Pipeline, &[Token]), String> {
    if depth > DEEPEST {
        return Err("too many parentheses in each other".to_owned());
    }
    let mut commands = vec![Vec::new()];
    while let Some((token, rest)) = tokens.split_first() {
        if *token == Token::Close {
            break;
        }
        tokens = rest;
        let last = commands.len() - 1;
        let mut push = |operand, fields| commands[last].push(Term { operand, fields });
        match token {
            Token::Field(fields) => push(Operand::Dot, fields.clone()),
            Token::Constant(value) => push(Operand::Constant(value.clone()), Vec::new()),
            Token::Word(name) => push(Operand::Function(name.clone()), Vec::new()),
            Token::Variable(name) => {
                let (fields, rest) = trailing(tokens);
                tokens = rest;
                push(Operand::Variable(name.clone()), fields);
            }
            Token::Open => {
                let (inner, rest) = pipeline(tokens, depth + 1)?;
                let Some((Token::Close, rest)) = rest.split_first() else {
                    return Err("a ( is not closed".to_owned());
                };
                let (fields, rest) = trailing(rest);
                tokens = rest;
                push(Operand::Group(inner), fields);
            }
            Token::Pipe => commands.push(Vec::new()),
            Token::Close | Token::Comma | Token::Assign => {
                return Err("a comma or := out of place".to_owned());
            }
        }
    }
    if commands.iter().any(Vec::is_empty) {
        return Err("a pipeline has an empty part".to_owned());
    }
    Ok((commands, tokens))
}

/// Fields that follow a variable or a closing parenthesis at once.
fn trailing(tokens: &[Token]) -> (Vec<String>, &[Token]) {
    match tokens.split_first() {
        Some((Token::Field(fields), rest)) if !fields.is_empty() => (fields.clone(), rest),
        _ => (Vec::new(), tokens),
    }
}
