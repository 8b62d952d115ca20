//! Tokens to a tree (cel-spec, "Syntax"), macros included.

use std::borrow::Cow;

use super::cost::Pattern;
use super::lexer::{Token, TokenKind, tokens};
use super::types::escape;
use super::{Issue, MAX_DEPTH, MAX_EXPRESSION_BYTES, signatures};

/// An expression and where it begins, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub(super) at: usize,
    pub(super) kind: Kind,
    /// Levels of the tree from here down.
    height: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Literal(Literal),
    Name(String),
    Select { of: Box<Expr>, field: FieldName, is_optional: bool },
    Has { of: Box<Expr>, field: FieldName },
    Call(Call),
    List(Vec<Item>),
    Map(Vec<Entry>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Conditional(Box<[Expr; 3]>),
    Fold(Box<Fold>),
    OptionalMap(Box<OptionalMap>),
}

#[derive(Clone, Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
}

/// The name of a field or of a key.
#[derive(Clone, Debug)]
pub(super) struct FieldName {
    /// As it is written; without its backticks.
    pub(super) text: String,
    /// Whether it stands between backticks, as it does in JSON.
    is_plain_json: bool,
}

impl Expr {
    /// Of some names, the last one that a field of this expression means, where this is a name
    /// itself: a name of two parts (cel-spec, "Name Resolution"), unless a later one is this alone.
    pub(super) fn qualified<'n, T>(
        &self,
        field: &FieldName,
        names: impl DoubleEndedIterator<Item = (&'n str, T)>,
    ) -> Option<T> {
        let Kind::Name(first) = &self.kind else { return None };
        let rest = |known: &'n str| known.strip_prefix(first.as_str());
        let (rest, found) = names
            .rev()
            .filter_map(|(known, value)| Some((rest(known)?, value)))
            .find(|(rest, _)| rest.is_empty() || rest.strip_prefix('.') == Some(&field.text))?;
        (!rest.is_empty()).then_some(found)
    }
}

impl FieldName {
    /// What objects know it by.
    pub(super) fn of_object(&self) -> Cow<'_, str> {
        let escaped = if self.is_plain_json { escape(&self.text) } else { None };
        escaped.map_or(Cow::Borrowed(self.text.as_str()), Cow::Owned)
    }
}

/// A function or an operator. The target of a method is its first argument.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) is_method: bool,
    pub(super) arguments: Vec<Expr>,
    /// The compiled pattern, when a regular expression is written out.
    pub(super) pattern: Option<Pattern>,
}

/// An item of a list; an optional one (`?`) may be absent.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) is_optional: bool,
    pub(super) value: Expr,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) is_optional: bool,
    pub(super) key: Expr,
    pub(super) value: Expr,
}

/// A macro that walks a list or a map.
#[derive(Clone, Debug)]
pub(super) struct Fold {
    pub(super) how: How,
    pub(super) over: Expr,
    pub(super) names: Vec<String>,
    pub(super) filter: Option<Expr>,
    pub(super) body: Expr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
}

/// `optMap` and `optFlatMap`.
#[derive(Clone, Debug)]
pub(super) struct OptionalMap {
    pub(super) of: Expr,
    pub(super) name: String,
    pub(super) body: Expr,
    pub(super) is_flat: bool,
}

/// Words that name nothing.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Reads an expression.
pub(super) fn parse(text: &str) -> Result<Expr, Issue> {
    if text.len() > MAX_EXPRESSION_BYTES {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {MAX_EXPRESSION_BYTES}",
            text.len()
        );
        return Err(Issue { at: 0, message });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let whole = parser.expression()?;
    match parser.peek() {
        TokenKind::End => Ok(whole),
        _ => Err(parser.unexpected("the end")),
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &TokenKind {
        self.tokens.get(self.next).map_or(&TokenKind::End, |token| &token.kind)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).or(self.tokens.last()).map_or(0, |token| token.at)
    }

    fn take(&mut self) -> TokenKind {
        let kind = self.peek().clone();
        self.next += 1;
        kind
    }

    /// Takes a sign when it is next; which of those.
    fn sign(&mut self, wanted: &[&str]) -> Option<&'static str> {
        let TokenKind::Sign(sign) = *self.peek() else { return None };
        if !wanted.contains(&sign) {
            return None;
        }
        self.next += 1;
        Some(sign)
    }

    fn expect(&mut self, wanted: &'static str) -> Result<(), Issue> {
        match self.sign(&[wanted]) {
            Some(_) => Ok(()),
            None => Err(self.unexpected(&format!("'{wanted}'"))),
        }
    }

    fn unexpected(&self, wanted: &str) -> Issue {
        let found = match self.peek() {
            TokenKind::Name(name) | TokenKind::Field(name) => format!("'{name}'"),
            TokenKind::Sign(sign) => format!("'{sign}'"),
            TokenKind::End => "'<EOF>'".to_owned(),
            _ => "a literal".to_owned(),
        };
        let message = format!("Syntax error: mismatched input {found} expecting {wanted}");
        Issue { at: self.at(), message }
    }

    /// Goes one level deeper for as long as `inner` runs.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, Issue>) -> Result<T, Issue> {
        if self.depth >= MAX_DEPTH {
            return Err(too_deep(self.at()));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn expression(&mut self) -> Result<Expr, Issue> {
        self.deeper(|parser| {
            let at = parser.at();
            let condition = parser.any_of()?;
            if parser.sign(&["?"]).is_none() {
                return Ok(condition);
            }
            let then = parser.any_of()?;
            parser.expect(":")?;
            let otherwise = parser.expression()?;
            let kind = Kind::Conditional(Box::new([condition, then, otherwise]));
            parser.node(at, kind)
        })
    }

    fn any_of(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        let mut terms = vec![self.all_of()?];
        while self.sign(&["||"]).is_some() {
            terms.push(self.all_of()?);
        }
        alone(terms).or_else(|terms| self.node(at, Kind::Or(terms)))
    }

    fn all_of(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        let mut terms = vec![self.binary(0)?];
        while self.sign(&["&&"]).is_some() {
            terms.push(self.binary(0)?);
        }
        alone(terms).or_else(|terms| self.node(at, Kind::And(terms)))
    }

    /// Operators of a rank and those that bind closer, from the left.
    fn binary(&mut self, lowest: u8) -> Result<Expr, Issue> {
        let mut left = self.unary()?;
        loop {
            let at = self.at();
            let Some((sign, rank)) = self.operator().filter(|(_, rank)| *rank >= lowest) else {
                return Ok(left);
            };
            self.next += 1;
            let right = self.binary(rank + 1)?;
            left = self.call(at, &format!("_{sign}_"), vec![left, right])?;
        }
    }

    /// The operator that is next, and how close it binds.
    fn operator(&self) -> Option<(&'static str, u8)> {
        match self.peek() {
            TokenKind::Name(name) if name == "in" => Some(("in", 0)),
            TokenKind::Sign(sign @ ("<" | "<=" | ">" | ">=" | "==" | "!=")) => Some((sign, 0)),
            TokenKind::Sign(sign @ ("+" | "-")) => Some((sign, 1)),
            TokenKind::Sign(sign @ ("*" | "/" | "%")) => Some((sign, 2)),
            _ => None,
        }
    }

    /// A node, unless the tree would become too deep.
    fn node(&self, at: usize, kind: Kind) -> Result<Expr, Issue> {
        let below = children(&kind).into_iter().map(|child| child.height).max().unwrap_or(0);
        match below < MAX_DEPTH {
            true => Ok(Expr { at, kind, height: below + 1 }),
            false => Err(too_deep(at)),
        }
    }

    fn call(&self, at: usize, name: &str, arguments: Vec<Expr>) -> Result<Expr, Issue> {
        let name = name.to_owned();
        self.node(at, Kind::Call(Call { name, is_method: false, arguments, pattern: None }))
    }

    fn unary(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        match self.sign(&["!", "-"]) {
            None => self.member(),
            Some("!") => self.deeper(|parser| {
                let inner = parser.unary()?;
                parser.call(at, "!_", vec![inner])
            }),
            Some(_) => {
                if let TokenKind::Int(magnitude) = *self.peek()
                    && let Some(number) = 0i64.checked_sub_unsigned(magnitude)
                {
                    self.next += 1;
                    let number = self.node(at, Kind::Literal(Literal::Int(number)))?;
                    return self.follow(number);
                }
                self.deeper(|parser| {
                    let inner = parser.unary()?;
                    parser.call(at, "-_", vec![inner])
                })
            }
        }
    }

    fn member(&mut self) -> Result<Expr, Issue> {
        let primary = self.primary()?;
        self.follow(primary)
    }

    /// What stands behind an expression: fields, methods, indexes.
    fn follow(&mut self, mut left: Expr) -> Result<Expr, Issue> {
        loop {
            let at = self.at();
            let Some(sign) = self.sign(&[".", ".?", "[", "[?"]) else { return Ok(left) };
            left = match sign {
                "." | ".?" => self.field(at, left, sign == ".?")?,
                _ => {
                    let index = self.expression()?;
                    self.expect("]")?;
                    let name = if sign == "[" { "_[_]" } else { "_[?_]" };
                    self.call(at, name, vec![left, index])?
                }
            };
        }
    }

    /// A field or a method behind the dot at `at`. As in cel-go a field's place is its dot, and that
    /// of a call its parenthesis.
    fn field(&mut self, at: usize, left: Expr, is_optional: bool) -> Result<Expr, Issue> {
        let (field, is_plain_json) = match self.peek().clone() {
            TokenKind::Name(field) => (field, false),
            TokenKind::Field(field) => (field, true),
            _ => return Err(self.unexpected("a field")),
        };
        self.next += 1;
        let open = self.at();
        if is_optional || is_plain_json || self.sign(&["("]).is_none() {
            let field = FieldName { text: field, is_plain_json };
            return self.node(at, Kind::Select { of: Box::new(left), field, is_optional });
        }
        let arguments = self.arguments(")")?;
        if let Kind::Name(space) = &left.kind {
            // Some functions have a dot in their name, as a variable with a method has.
            let whole = format!("{space}.{field}");
            if !signatures::of(&whole).is_empty() {
                return self.call(open, &whole, arguments);
            }
        }
        let kind = expand(open, left, &field, arguments)?;
        self.node(open, kind)
    }

    fn arguments(&mut self, end: &'static str) -> Result<Vec<Expr>, Issue> {
        let mut arguments = Vec::new();
        while self.sign(&[end]).is_none() {
            arguments.push(self.expression()?);
            if self.sign(&[","]).is_none() {
                self.expect(end)?;
                break;
            }
        }
        Ok(arguments)
    }

    fn primary(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        let kind = match self.peek().clone() {
            TokenKind::Int(magnitude) => match i64::try_from(magnitude) {
                Ok(number) => Kind::Literal(Literal::Int(number)),
                Err(_) => {
                    let message = "Syntax error: invalid int literal".to_owned();
                    return Err(Issue { at, message });
                }
            },
            TokenKind::Uint(number) => Kind::Literal(Literal::Uint(number)),
            TokenKind::Double(number) => Kind::Literal(Literal::Double(number)),
            TokenKind::Text(text) => Kind::Literal(Literal::Text(text)),
            TokenKind::Bytes(octets) => Kind::Literal(Literal::Bytes(octets)),
            TokenKind::Name(name) => {
                self.next += 1;
                return self.name(at, name);
            }
            TokenKind::Sign("(") => {
                self.next += 1;
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            // A leading dot names what stands at the root; nothing of ours stands elsewhere.
            TokenKind::Sign(".") => {
                self.next += 1;
                return match self.take() {
                    TokenKind::Name(name) => self.name(at, name),
                    _ => Err(self.unexpected("a name")),
                };
            }
            TokenKind::Sign("[" | "[?") => return self.list(),
            TokenKind::Sign("{" | "{?") => return self.map(),
            _ => return Err(self.unexpected("an expression")),
        };
        self.next += 1;
        self.node(at, kind)
    }

    fn name(&mut self, at: usize, name: String) -> Result<Expr, Issue> {
        let literal = match name.as_str() {
            "true" => Some(Literal::Bool(true)),
            "false" => Some(Literal::Bool(false)),
            "null" => Some(Literal::Null),
            _ => None,
        };
        if let Some(literal) = literal {
            return self.node(at, Kind::Literal(literal));
        }
        if name == "in" || RESERVED.contains(&name.as_str()) {
            return Err(Issue { at, message: format!("reserved identifier: {name}") });
        }
        let open = self.at();
        if self.sign(&["("]).is_none() {
            return self.node(at, Kind::Name(name));
        }
        let mut arguments = self.arguments(")")?;
        if name != "has" {
            return self.call(open, &name, arguments);
        }
        let argument = if arguments.len() == 1 { arguments.pop() } else { None };
        let at = argument.as_ref().map_or(open, |argument| argument.at);
        match argument.map(|argument| argument.kind) {
            Some(Kind::Select { of, field, is_optional: false }) => {
                self.node(open, Kind::Has { of, field })
            }
            _ => Err(Issue { at, message: "invalid argument to has() macro".to_owned() }),
        }
    }

    fn list(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        let mut is_optional = self.sign(&["[?", "["]) == Some("[?");
        let mut items = Vec::new();
        while self.sign(&["]"]).is_none() {
            is_optional |= self.sign(&["?"]).is_some();
            items.push(Item { is_optional, value: self.expression()? });
            is_optional = false;
            if self.sign(&[","]).is_none() {
                self.expect("]")?;
                break;
            }
        }
        self.node(at, Kind::List(items))
    }

    fn map(&mut self) -> Result<Expr, Issue> {
        let at = self.at();
        let mut is_optional = self.sign(&["{?", "{"]) == Some("{?");
        let mut entries = Vec::new();
        while self.sign(&["}"]).is_none() {
            is_optional |= self.sign(&["?"]).is_some();
            let key = self.expression()?;
            self.expect(":")?;
            entries.push(Entry { is_optional, key, value: self.expression()? });
            is_optional = false;
            if self.sign(&[","]).is_none() {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, Kind::Map(entries))
    }
}

/// The one term, or all of them.
fn alone(mut terms: Vec<Expr>) -> Result<Expr, Vec<Expr>> {
    match terms.len() {
        1 => terms.pop().ok_or_else(Vec::new),
        _ => Err(terms),
    }
}

/// What stands right below a node.
pub(super) fn children(kind: &Kind) -> Vec<&Expr> {
    match kind {
        Kind::Literal(_) | Kind::Name(_) => Vec::new(),
        Kind::Select { of, .. } | Kind::Has { of, .. } => vec![of],
        Kind::Call(call) => call.arguments.iter().collect(),
        Kind::List(items) => items.iter().map(|item| &item.value).collect(),
        Kind::Map(entries) => entries.iter().flat_map(|entry| [&entry.key, &entry.value]).collect(),
        Kind::And(terms) | Kind::Or(terms) => terms.iter().collect(),
        Kind::Conditional(parts) => parts.iter().collect(),
        Kind::Fold(fold) => {
            [&fold.over, &fold.body].into_iter().chain(fold.filter.as_ref()).collect()
        }
        Kind::OptionalMap(map) => vec![&map.of, &map.body],
    }
}

/// What stands right below a node, to be changed.
pub(super) fn children_mut(kind: &mut Kind) -> Vec<&mut Expr> {
    match kind {
        Kind::Literal(_) | Kind::Name(_) => Vec::new(),
        Kind::Select { of, .. } | Kind::Has { of, .. } => vec![of],
        Kind::Call(call) => call.arguments.iter_mut().collect(),
        Kind::List(items) => items.iter_mut().map(|item| &mut item.value).collect(),
        Kind::Map(entries) => {
            entries.iter_mut().flat_map(|entry| [&mut entry.key, &mut entry.value]).collect()
        }
        Kind::And(terms) | Kind::Or(terms) => terms.iter_mut().collect(),
        Kind::Conditional(parts) => parts.iter_mut().collect(),
        Kind::Fold(fold) => {
            let Fold { over, body, filter, .. } = &mut **fold;
            [over, body].into_iter().chain(filter.as_mut()).collect()
        }
        Kind::OptionalMap(map) => {
            let OptionalMap { of, body, .. } = &mut **map;
            vec![of, body]
        }
    }
}

fn too_deep(at: usize) -> Issue {
    Issue { at, message: format!("expression recursion limit exceeded: {MAX_DEPTH}") }
}

/// A method, or the macro that it is.
fn expand(at: usize, target: Expr, name: &str, mut arguments: Vec<Expr>) -> Result<Kind, Issue> {
    let missing = || Issue { at, message: format!("the macro {name} lacks an argument") };
    let how = match (name, arguments.len()) {
        ("optMap" | "optFlatMap", 2) => {
            let is_flat = name == "optFlatMap";
            let body = arguments.pop().ok_or_else(missing)?;
            let name = variable(arguments.pop().ok_or_else(missing)?)?;
            let map = OptionalMap { of: target, name, body, is_flat };
            return Ok(Kind::OptionalMap(Box::new(map)));
        }
        ("all", 2 | 3) => How::All,
        ("exists", 2 | 3) => How::Exists,
        ("exists_one", 2 | 3) | ("existsOne", 2 | 3) => How::ExistsOne,
        ("map", 2 | 3) => How::Map,
        ("filter", 2) => How::Filter,
        ("transformList", 3 | 4) => How::TransformList,
        ("transformMap", 3 | 4) => How::TransformMap,
        ("transformMapEntry", 3 | 4) => How::TransformMapEntry,
        _ => {
            arguments.insert(0, target);
            let name = name.to_owned();
            return Ok(Kind::Call(Call { name, is_method: true, arguments, pattern: None }));
        }
    };
    let has_two_names = match how {
        How::Map | How::Filter => false,
        How::All | How::Exists | How::ExistsOne => arguments.len() == 3,
        How::TransformList | How::TransformMap | How::TransformMapEntry => true,
    };
    let has_filter = arguments.len() == 3 + usize::from(has_two_names);
    let mut arguments = arguments.into_iter();
    let mut next = || arguments.next().ok_or_else(missing);
    let mut names = vec![variable(next()?)?];
    if has_two_names {
        names.push(variable(next()?)?);
    }
    let filter = if has_filter { Some(next()?) } else { None };
    let fold = Fold { how, over: target, names, filter, body: next()? };
    Ok(Kind::Fold(Box::new(fold)))
}

fn variable(argument: Expr) -> Result<String, Issue> {
    match argument.kind {
        Kind::Name(name) => Ok(name),
        _ => Err(Issue { at: argument.at, message: "argument must be a simple name".to_owned() }),
    }
}
