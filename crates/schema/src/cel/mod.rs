//! The Common Expression Language of `x-kubernetes-validations` (cel-spec, and kubernetes.io,
//! "Common Expression Language in Kubernetes").
//!
//! - [`Program::compile`] reads an expression and finds its type; what is wrong is told in the words
//!   and the places of the real server.
//! - [`Program::estimate`] says what it can cost at most, by the limits of its schema.
//! - [`Program::run`] evaluates it over JSON, within a budget of costs. It neither recurses deeper
//!   than [`MAX_DEPTH`] nor runs longer than its budget, whatever the input.
//!
//! Expressions are written by whoever may make definitions, and values by whoever may make objects.

mod check;
mod cost;
mod estimate;
mod evaluate;
mod functions;
mod lexer;
mod objects;
mod parser;
mod signatures;
mod types;
mod value;

use cost::Pattern;
pub use estimate::{Extent, MAX_REQUEST_BYTES};
pub use functions::authorization::{Account, Authorizer, Decision, Question, Target};
pub(crate) use functions::parse_duration;
use parser::{Expr, Kind, Literal};
pub use types::{Identity, Type};
pub use value::{Text, Value};

/// Deepest nesting of an expression, in levels. cel-go allows 250; ours must fit into 2 MB of stack
/// also when nothing is optimised.
pub const MAX_DEPTH: usize = 64;
/// Longest expression, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 100_000;
/// Cost of one evaluation of one rule (apiserver's `PerCallLimit`).
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// Cost of all rules for one object (apiserver's `RuntimeCELCostBudget`).
pub const OBJECT_COST_BUDGET: u64 = 10_000_000;
/// Bytes that a compiled regular expression may take.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

/// An expression that is ready to be evaluated.
#[derive(Clone, Debug)]
pub struct Program {
    expr: Expr,
    result: Type,
    names: Vec<String>,
}

/// What is wrong with an expression, and where, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Issue {
    at: usize,
    message: String,
}

/// Why an evaluation has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The expression fails for this value: a missing key, a division by zero.
    Failed(String),
    /// It costs more than [`PER_CALL_LIMIT`].
    CostLimit,
}

impl Error {
    fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(message) => f.write_str(message),
            Self::CostLimit => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl Program {
    /// Reads an expression that may use some variables.
    ///
    /// # Errors
    /// What is wrong with it, as the real server prints it.
    pub fn compile(text: &str, variables: &[(&str, Type)]) -> Result<Self, String> {
        let told = |issues: &[Issue]| {
            let lines: Vec<String> = issues.iter().map(|issue| issue.show(text)).collect();
            lines.join("\n")
        };
        let mut expr = parser::parse(text).map_err(|issue| told(&[issue]))?;
        compile_patterns(&mut expr).map_err(|issue| told(&[issue]))?;
        let (result, names) = check::check(&expr, variables).map_err(|issues| told(&issues))?;
        Ok(Self { expr, result, names })
    }

    /// The type of what it evaluates to.
    pub fn result(&self) -> &Type {
        &self.result
    }

    /// Whether it evaluates to a type, as far as is known before.
    pub fn may_be(&self, wanted: &Type) -> bool {
        self.result == Type::Dyn || self.result == *wanted
    }

    /// Whether it uses a variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.names.iter().any(|name| name == variable)
    }

    /// Evaluates it: its value or why there is none, and what it cost.
    pub fn run<'a>(
        &'a self,
        variables: &[(&'a str, Value<'a>)],
    ) -> (Result<Value<'a>, Error>, u64) {
        evaluate::run(&self.expr, variables)
    }
}

impl Issue {
    /// With its place, the line and a mark below it.
    fn show(&self, text: &str) -> String {
        let before = text.get(..self.at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let begin = before.rfind('\n').map_or(0, |end| end + 1);
        let column = before.get(begin..).map_or(0, |part| part.chars().count());
        let shown = text.get(begin..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        let dots = ".".repeat(column);
        let number = column + 1;
        format!("ERROR: <input>:{line}:{number}: {}\n | {shown}\n | {dots}^", self.message)
    }
}

/// Compiles the patterns that are written out, so that they are read once, and refuses wrong ones.
fn compile_patterns(expr: &mut Expr) -> Result<(), Issue> {
    if let Kind::Call(call) = &mut expr.kind
        && matches!(call.name.as_str(), "matches" | "find" | "findAll")
        && let Some(Expr { kind: Kind::Literal(Literal::Text(pattern)), at, .. }) =
            call.arguments.get(1)
    {
        let message = |error| format!("invalid matches argument: {error}");
        let compiled =
            Pattern::new(pattern).map_err(|error| Issue { at: *at, message: message(error) })?;
        call.pattern = Some(compiled);
    }
    parser::children_mut(&mut expr.kind).into_iter().try_for_each(compile_patterns)
}

#[cfg(test)]
mod tests;
