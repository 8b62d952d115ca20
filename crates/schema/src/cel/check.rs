//! The type of an expression, or what is wrong with it (cel-spec, "Gradual type checking").

use std::collections::BTreeMap;

use super::parser::{Call, Entry, Expr, FieldName, Fold, How, Item, Kind, Literal, OptionalMap};
use super::types::Type;
use super::{Issue, signatures};

/// Most issues that are told of one expression.
const MAX_ISSUES: usize = 10;

/// The type of an expression, and the variables that it uses.
pub(super) fn check(
    expr: &Expr,
    variables: &[(&str, Type)],
) -> Result<(Type, Vec<String>), Vec<Issue>> {
    let scope = variables.iter().map(|(name, kind)| ((*name).to_owned(), kind.clone())).collect();
    let mut checker = Checker {
        scope,
        given: variables.len(),
        used: Vec::new(),
        allows_mixed: false,
        issues: Vec::new(),
    };
    let kind = checker.type_of(expr);
    if checker.issues.is_empty() { Ok((kind, checker.used)) } else { Err(checker.issues) }
}

struct Checker {
    /// Variables, those of the innermost macro last.
    scope: Vec<(String, Type)>,
    /// How many of them stand outside of all macros.
    given: usize,
    used: Vec<String>,
    allows_mixed: bool,
    issues: Vec<Issue>,
}

impl Checker {
    /// Notes an issue. What depends on the expression is not blamed for it, too.
    fn issue(&mut self, at: usize, message: String) -> Type {
        if self.issues.len() < MAX_ISSUES {
            self.issues.push(Issue { at, message });
        }
        Type::Dyn
    }

    fn type_of(&mut self, expr: &Expr) -> Type {
        match &expr.kind {
            Kind::Literal(literal) => literal.kind(),
            Kind::Name(name) => self.name(expr.at, name),
            Kind::Select { of, field, is_optional } => {
                let known = self.scope.iter().map(|(name, kind)| (name.as_str(), kind));
                if let Some(kind) = of.qualified(field, known) {
                    return kind.clone();
                }
                let of = self.type_of(of);
                match (of, is_optional) {
                    (Type::Optional(inner), _) => {
                        Type::optional(self.field(expr.at, &inner, field))
                    }
                    (of, true) => Type::optional(self.field(expr.at, &of, field)),
                    (of, false) => self.field(expr.at, &of, field),
                }
            }
            Kind::Has { of, field } => {
                let of = match self.type_of(of) {
                    Type::Optional(inner) => (*inner).clone(),
                    other => other,
                };
                self.field(expr.at, &of, field);
                Type::Bool
            }
            Kind::Call(call) => self.call(expr.at, call),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::And(terms) | Kind::Or(terms) => {
                for term in terms {
                    self.expect(term, &Type::Bool);
                }
                Type::Bool
            }
            Kind::Conditional(parts) => {
                let [condition, then, otherwise] = &**parts;
                self.expect(condition, &Type::Bool);
                let (one, other) = (self.type_of(then), self.type_of(otherwise));
                self.join(expr.at, "_?_:_", &one, &other)
            }
            Kind::Fold(fold) => self.fold(fold),
            Kind::OptionalMap(map) => self.optional_map(map),
        }
    }

    fn name(&mut self, at: usize, name: &str) -> Type {
        if let Some(place) = self.scope.iter().rposition(|(known, _)| known == name) {
            if place < self.given && !self.used.iter().any(|used| used == name) {
                self.used.push(name.to_owned());
            }
            return self.scope.get(place).map_or(Type::Dyn, |(_, kind)| kind.clone());
        }
        match super::value::TYPE_NAMES.contains(&name) {
            true => Type::Type,
            false => self.issue(at, format!("undeclared reference to '{name}' (in container '')")),
        }
    }

    fn field(&mut self, at: usize, of: &Type, field: &FieldName) -> Type {
        match of {
            Type::Dyn => Type::Dyn,
            Type::Map(map) => map.1.clone(),
            Type::Object(object) => match object.fields.get(&*field.of_object()) {
                Some(known) => known.kind.clone(),
                None => self.issue(at, format!("undefined field '{}'", field.text)),
            },
            other => {
                let message = format!("type '{other}' does not support field selection");
                self.issue(at, message)
            }
        }
    }

    fn expect(&mut self, expr: &Expr, wanted: &Type) {
        let found = self.type_of(expr);
        if !wanted.takes(&found, &mut BTreeMap::new()) {
            self.issue(expr.at, format!("expected type '{wanted}' but found '{found}'"));
        }
    }

    /// The type of what is one or the other.
    fn join(&mut self, at: usize, name: &str, one: &Type, other: &Type) -> Type {
        let mut letters = BTreeMap::new();
        if one.takes(other, &mut letters) {
            return match (one, other) {
                (Type::Null, wider) => wider.clone(),
                (_, Type::Dyn) => Type::Dyn,
                (one, _) => one.clone(),
            };
        }
        let message =
            format!("found no matching overload for '{name}' applied to '(bool, {one}, {other})'");
        self.issue(at, message)
    }

    fn call(&mut self, at: usize, call: &Call) -> Type {
        // Only what is formatted may be of several types.
        let before = std::mem::replace(&mut self.allows_mixed, call.name == "format");
        let types: Vec<Type> = call.arguments.iter().map(|one| self.type_of(one)).collect();
        self.allows_mixed = before;
        let known = signatures::of(&call.name);
        match (call.name.as_str(), types.as_slice()) {
            ("_[_]" | "_[?_]", [of, index]) => return self.index(at, &call.name, of, index),
            _ if known.is_empty() => {
                let message = format!("undeclared reference to '{}' (in container '')", call.name);
                return self.issue(at, message);
            }
            // Numbers of all kinds compare (`CrossTypeNumericComparisons`).
            ("_==_" | "_!=_", [one, other]) if one.is_number() && other.is_number() => {
                return Type::Bool;
            }
            _ => {}
        }
        let mut result: Option<Type> = None;
        for signature in known {
            if signature.is_method != call.is_method || signature.parameters.len() != types.len() {
                continue;
            }
            let mut letters = BTreeMap::new();
            let mut pairs = signature.parameters.iter().zip(&types);
            if !pairs.all(|(wanted, found)| wanted.takes(found, &mut letters)) {
                continue;
            }
            let found = signature.result.filled(&letters);
            result = Some(match result {
                Some(before) if before != found => Type::Dyn,
                _ => found,
            });
        }
        result.unwrap_or_else(|| {
            let shown = show(call.is_method, &types);
            let name = &call.name;
            let message = format!("found no matching overload for '{name}' applied to '{shown}'");
            self.issue(at, message)
        })
    }

    fn index(&mut self, at: usize, name: &str, of: &Type, index: &Type) -> Type {
        let (of, is_optional) = match of {
            Type::Optional(inner) => (&**inner, true),
            other => (other, name == "_[?_]"),
        };
        let fits = |wanted: &Type| {
            wanted.takes(index, &mut BTreeMap::new()) || wanted.is_number() && index.is_number()
        };
        let item = match of {
            Type::Dyn => Type::Dyn,
            Type::List(list) if fits(&Type::Int) => list.item.clone(),
            Type::Map(map) if fits(&map.0) => map.1.clone(),
            other => {
                let shown = show(false, &[other.clone(), index.clone()]);
                let message =
                    format!("found no matching overload for '{name}' applied to '{shown}'");
                return self.issue(at, message);
            }
        };
        if is_optional { Type::optional(item) } else { item }
    }

    fn list(&mut self, items: &[Item]) -> Type {
        let values: Vec<(bool, &Expr)> =
            items.iter().map(|item| (item.is_optional, &item.value)).collect();
        Type::list(self.same(&values))
    }

    fn map(&mut self, entries: &[Entry]) -> Type {
        let keys: Vec<(bool, &Expr)> = entries.iter().map(|entry| (false, &entry.key)).collect();
        let values: Vec<(bool, &Expr)> =
            entries.iter().map(|entry| (entry.is_optional, &entry.value)).collect();
        Type::map(self.same(&keys), self.same(&values))
    }

    /// The one type of several values (`HomogeneousAggregateLiterals`).
    fn same(&mut self, values: &[(bool, &Expr)]) -> Type {
        let mut common: Option<Type> = None;
        for (is_optional, value) in values {
            let found = match (self.type_of(value), is_optional) {
                (Type::Optional(inner), true) => (*inner).clone(),
                (Type::Dyn, true) => Type::Dyn,
                (other, true) => {
                    let message = format!("expected type 'optional_type(dyn)' but found '{other}'");
                    self.issue(value.at, message)
                }
                (other, false) => other,
            };
            common = Some(match common {
                None => found,
                Some(before) if before.takes(&found, &mut BTreeMap::new()) => before,
                Some(_) if self.allows_mixed => Type::Dyn,
                Some(before) => {
                    let message = format!("expected type '{before}' but found '{found}'");
                    self.issue(value.at, message)
                }
            });
        }
        common.unwrap_or(Type::Dyn)
    }

    fn fold(&mut self, fold: &Fold) -> Type {
        let over = self.type_of(&fold.over);
        // One name stands for the item of a list and the key of a map, two for place and item.
        let (first, second) = match &over {
            Type::List(list) => (Type::Int, list.item.clone()),
            Type::Map(map) => (map.0.clone(), map.1.clone()),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be \
                     list, map, or dynamic)"
                );
                self.issue(fold.over.at, message);
                (Type::Dyn, Type::Dyn)
            }
        };
        let before = self.scope.len();
        match fold.names.as_slice() {
            [one] if matches!(over, Type::List(_)) => self.scope.push((one.clone(), second)),
            [one] => self.scope.push((one.clone(), first.clone())),
            [one, other] => {
                self.scope.push((one.clone(), first.clone()));
                self.scope.push((other.clone(), second));
            }
            _ => {}
        }
        if let Some(filter) = &fold.filter {
            self.expect(filter, &Type::Bool);
        }
        let result = match fold.how {
            How::All | How::Exists | How::ExistsOne => {
                self.expect(&fold.body, &Type::Bool);
                Type::Bool
            }
            How::Filter => {
                self.expect(&fold.body, &Type::Bool);
                match &over {
                    Type::List(list) => Type::list(list.item.clone()),
                    _ => Type::list(first),
                }
            }
            How::Map | How::TransformList => Type::list(self.type_of(&fold.body)),
            How::TransformMap => Type::map(first, self.type_of(&fold.body)),
            How::TransformMapEntry => {
                let entries = self.type_of(&fold.body);
                match entries {
                    Type::Map(_) | Type::Dyn => entries,
                    other => {
                        let message = format!("expected type 'map(dyn, dyn)' but found '{other}'");
                        self.issue(fold.body.at, message)
                    }
                }
            }
        };
        self.scope.truncate(before);
        result
    }

    fn optional_map(&mut self, map: &OptionalMap) -> Type {
        let inner = match self.type_of(&map.of) {
            Type::Optional(inner) => (*inner).clone(),
            Type::Dyn => Type::Dyn,
            other => {
                let message = format!("expected type 'optional_type(dyn)' but found '{other}'");
                self.issue(map.of.at, message)
            }
        };
        self.scope.push((map.name.clone(), inner));
        let result = self.type_of(&map.body);
        self.scope.pop();
        match (map.is_flat, result) {
            (false, result) => Type::optional(result),
            (true, result @ (Type::Optional(_) | Type::Dyn)) => result,
            (true, other) => {
                let message = format!("expected type 'optional_type(dyn)' but found '{other}'");
                self.issue(map.body.at, message)
            }
        }
    }
}

impl Literal {
    fn kind(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::Text(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
        }
    }
}

/// Types of arguments as messages show them: `string.(int)`, `(string, int)`.
fn show(is_method: bool, types: &[Type]) -> String {
    let join = |types: &[Type]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
    match types.split_first() {
        Some((target, rest)) if is_method => format!("{target}.({})", join(rest)),
        _ => format!("({})", join(types)),
    }
}
