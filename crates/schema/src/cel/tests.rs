use serde_json::{Value as Json, json};

use super::*;

/// What expressions see in these tests.
fn kind() -> Type {
    let port = Type::object([("port", Type::Int), ("name", Type::String)]);
    Type::object([
        ("replicas", Type::Int),
        ("ratio", Type::Double),
        ("name", Type::String),
        ("namespace", Type::String),
        ("a.b-c", Type::Bool),
        ("tags", Type::list_of(Type::String, Identity::Value)),
        ("sizes", Type::list(Type::Int)),
        ("ports", Type::list_of(port, Identity::Keys(vec!["port".to_owned()]))),
        ("labels", Type::map(Type::String, Type::String)),
        ("target", Type::Dyn),
        ("when", Type::Timestamp),
        ("wait", Type::Duration),
        ("data", Type::Bytes),
        ("absent", Type::String),
    ])
}

fn object() -> Json {
    json!({
        "replicas": 3, "ratio": 0.5, "name": "web", "namespace": "shop", "a.b-c": true,
        "tags": ["x", "y"], "sizes": [3, 1, 2],
        "ports": [{"port": 80, "name": "http"}, {"port": 443, "name": "https"}],
        "labels": {"app": "web", "tier": "1"}, "target": "50%",
        "when": "2024-02-29T13:05:07.250Z", "wait": "1h30m", "data": "aGk=",
        "hidden": 1,
    })
}

/// The value of an expression, or its error, as text.
fn said(text: &str) -> String {
    let kind = kind();
    let object = object();
    let program = match Program::compile(text, &[("self", kind.clone())]) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let (value, _) = program.run(&[("self", Value::of(&object, &kind))]);
    match value {
        Ok(Value::Bool(truth)) => truth.to_string(),
        Ok(Value::Int(number)) => number.to_string(),
        Ok(Value::Text(text)) => text.to_string(),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn expressions_that_are_true() {
    for text in [
        // The language.
        "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && 7 / 2 == 3 && -7 % 3 == -1",
        "1 < 2.5 && 2u == 2 && 1.0 == 1 && 10 > 9u && 'a' < 'b'",
        "0x10 == 16 && 1e3 == 1000.0 && .5 == 0.5 && -1 < 0 && - 1 == -1",
        "'a\\n\\x41\\u00e9\\101' == \"a\\nA\u{e9}A\" && r'\\n' == '\\\\n' && b'\\xff'.size() == 1",
        "'''it's''' == \"it's\" && \"\"\"a\nb\"\"\".size() == 3",
        "true ? true : 1 / 0 == 1",
        "false && 1 / 0 == 1 ? false : true",
        "(1 / 0 == 1 && false) == false && (1 / 0 == 1 || true)",
        "!false && !!true // a comment",
        "1 in [1, 2] && !(3 in [1, 2]) && 'a' in {'a': 1} && {'a': 1}['a'] == 1",
        "[1, 2] + [3] == [1, 2, 3] && [1, 2][1] == 2",
        "type(1) == int && type('') == string && type([]) == list && type(null) == null_type",
        "int('5') == 5 && int(5.9) == 5 && double(1) == 1.0 && string(5) == '5' && uint(1) == 1u",
        "bool('true') && string(bytes('hi')) == 'hi' && dyn(1) == 1",
        // The object.
        "self.replicas == 3 && self.ratio < 1.0 && self.__namespace__ == 'shop'",
        "self.a__dot__b__dash__c",
        "self.`a.b-c` && has(self.`a.b-c`) && self.?`a.b-c`.hasValue() && self.`namespace` == 'shop'",
        "{'a-b': 1}.`a-b` == 1 && dyn({'c/d': 2}).`c/d` == 2",
        "has(self.name) && !has(self.absent)",
        "self.tags == ['y', 'x'] && self.sizes != [1, 2, 3]",
        "self.tags + ['y', 'z'] == ['x', 'y', 'z']",
        "(self.ports + self.ports.filter(p, p.port == 80)).size() == 2",
        "self.labels['app'] == self.labels.app && 'tier' in self.labels && self.labels.size() == 2",
        "self.target == '50%' && type(self.target) == string",
        "self.when.getFullYear() == 2024 && self.when.getMonth() == 1 && self.when.getDate() == 29",
        "self.when.getDayOfMonth() == 28 && self.when.getDayOfWeek() == 4 && self.when.getHours() == 13",
        "self.when.getDayOfYear() == 59 && self.when.getMilliseconds() == 250",
        "self.when > timestamp('2024-01-01T00:00:00Z') && self.when - duration('1h') < self.when",
        "self.when.getHours('Europe/Berlin') == 14 && self.when.getHours('UTC') == 13 && self.when.getHours('') == 13",
        "self.when.getDate('+11:30') == 1 && self.when.getMonth('+11:30') == 2 && self.when.getHours('-05:30') == 7 && self.when.getMinutes('-05:30') == 35",
        "self.wait == duration('90m') && self.wait.getMinutes() == 90 && duration('-1.5s').getMilliseconds() == -1500",
        "self.data == b'hi'",
        // Macros.
        "self.sizes.all(x, x > 0) && self.sizes.exists(x, x == 2) && self.sizes.exists_one(x, x > 2)",
        "self.sizes.map(x, x * 2) == [6, 2, 4] && self.sizes.filter(x, x > 1) == [3, 2]",
        "self.sizes.map(x, x > 1, x + 1) == [4, 3]",
        "self.labels.all(k, k.size() > 2) && self.labels.map(k, k).size() == 2",
        "self.sizes.all(i, x, i >= 0 && x > 0) && self.labels.exists(k, v, k == 'tier' && v == '1')",
        "self.sizes.transformList(i, x, x + i) == [3, 2, 4]",
        "self.labels.transformMap(k, v, k + v) == {'app': 'appweb', 'tier': 'tier1'}",
        "self.labels.transformMapEntry(k, v, {v: k}) == {'web': 'app', '1': 'tier'}",
        "[1, 2].exists(x, 1 / (x - 1) == 1) && ![0, 1].all(x, 1 / x == 2)",
        "self.ports.all(p, p.port > 0 && self.ports.exists_one(q, q.name == p.name))",
        "[[1], [2]].all(x, x.all(x, x > 0))",
        // Texts.
        "'tacocat'.charAt(3) == 'o' && 'tacocat'.indexOf('a') == 1 && 'tacocat'.lastIndexOf('a') == 5",
        "'tacocat'.indexOf('a', 2) == 5 && 'tacocat'.lastIndexOf('a', 3) == 1 && 'x'.indexOf('y') == -1",
        "'é1'.size() == 2 && 'é1'.substring(1) == '1' && 'abc'.substring(1, 2) == 'b'",
        "' a '.trim() == 'a' && 'aB'.lowerAscii() == 'ab' && 'aB'.upperAscii() == 'AB'",
        "'a-b-c'.replace('-', '+') == 'a+b+c' && 'a-b-c'.replace('-', '+', 1) == 'a+b-c'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'ab'.split('') == ['a', 'b']",
        "['a', 'b'].join() == 'ab' && ['a', 'b'].join('-') == 'a-b'",
        "'web-1'.startsWith('web') && 'web-1'.endsWith('1') && 'web-1'.contains('b-')",
        "'web-1'.matches('^[a-z]+-[0-9]$') && !'web'.matches('^e') && 'web-1'.find('[0-9]') == '1'",
        "'a1b2'.findAll('[0-9]') == ['1', '2'] && 'a1b2'.findAll('[0-9]', 1) == ['1']",
        "'%s is %d of %.2f, %x'.format(['a', 1, 2.5, 255]) == 'a is 1 of 2.50, ff'",
        // Lists and sets.
        "[1, 2, 3].isSorted() && !self.sizes.isSorted() && self.sizes.sum() == 6",
        "self.sizes.min() == 1 && self.sizes.max() == 3 && self.sizes.indexOf(1) == 1 && [1, 1].lastIndexOf(1) == 1",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2])",
        // Optionals.
        "self.?name.orValue('x') == 'web' && self.?absent.orValue('x') == 'x'",
        "self.labels[?'no'].hasValue() == false && optional.of(1).value() == 1",
        "optional.none().or(optional.of(2)).value() == 2 && !optional.ofNonZeroValue('').hasValue()",
        "self.?name.optMap(n, n + '!').orValue('') == 'web!' && self.?absent.optFlatMap(n, optional.of(n)).hasValue() == false",
        "[?self.?name, ?self.?absent] == ['web'] && {?'a': self.?absent}.size() == 0",
        // Formats and versions.
        "!format.dns1123Label().validate('web-1').hasValue() && format.dns1123Label().validate('Web').value().size() == 1",
        "format.named('uuid').value().validate('x').value() == ['does not match the UUID format'] && !format.named('nope').hasValue()",
        "!format.dns1035LabelPrefix().validate('web-').hasValue() && format.dns1035Label().validate('web-').hasValue()",
        "['a/b', 'a'].all(x, !format.qualifiedName().validate(x).hasValue()) && format.labelValue().validate('-').hasValue()",
        "format.date().validate('2024-02-30').hasValue() && !format.datetime().validate('2024-02-29T00:00:00Z').hasValue()",
        "!format.uri().validate('https://a/b').hasValue() && format.byte().validate('%').value() == ['invalid base64']",
        "format.uuid() == format.named('uuid').value() && format.uuid() != format.uri()",
        "isSemver('1.2.3-rc.1+x') && !isSemver('v1.2') && isSemver('v1.2', true) && semver('v01.2', true) == semver('1.2.0')",
        "semver('1.10.0').isGreaterThan(semver('1.9.0')) && semver('1.0.0-a').isLessThan(semver('1.0.0')) && semver('1.2.3').compareTo(semver('1.2.3')) == 0",
        "semver('1.2.3').major() == 1 && semver('1.2.3').minor() == 2 && semver('1.2.3').patch() == 3",
        // Addresses, URLs, quantities.
        "isIP('10.0.0.1') && isIP('::1') && !isIP('10.0.0.01') && !isIP('::ffff:1.2.3.4') && !isIP('10.0.0.0/8')",
        "ip('10.0.0.1').family() == 4 && ip('::1').isLoopback() && ip('10.0.0.1').isGlobalUnicast() && ip.isCanonical('::1')",
        "ip('::1') == ip('0:0:0:0:0:0:0:1') && !ip.isCanonical('0:0::1') && ip('fe80::1').isLinkLocalUnicast()",
        "isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && cidr('10.0.0.0/8').containsIP('10.1.2.3')",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && !cidr('10.1.0.0/16').containsCIDR(cidr('10.0.0.0/8'))",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('::/0').containsIP('::1') && cidr('10.0.0.0/8').prefixLength() == 8",
        "string(ip('::1')) == '::1' && cidr('10.0.0.1/8').ip() == ip('10.0.0.1')",
        "isURL('https://a.example:80/p?x=1&x=2') && !isURL('a.example') && isURL('/path')",
        "url('https://[::1]:80/p a'.replace(' ', '')).getHostname() == '::1' && url('https://a:80/').getPort() == '80'",
        "url('https://a:80/p?x=1&x=2').getQuery() == {'x': ['1', '2']} && url('http://a/b').getEscapedPath() == '/b'",
        "quantity('1Gi') == quantity('1024Mi') && quantity('500m').isLessThan(quantity('1')) && !isQuantity('1x')",
        "quantity('1k').asInteger() == 1000 && quantity('1').add(2).compareTo(quantity('3')) == 0 && quantity('-1').sign() == -1",
    ] {
        assert_eq!(said(text), "true", "{text}");
    }
}

#[test]
fn what_does_not_compile_is_told_with_its_place() {
    for (text, expected) in [
        (
            "self.replica > 1",
            "ERROR: <input>:1:5: undefined field 'replica'\n | self.replica > 1\n | ....^",
        ),
        // Places as cel-go has them: a field's dot, a call's parenthesis, an operator.
        ("self.replicas.x", ":1:14: type 'int' does not support"),
        ("self.name.frobnicate()", ":1:21: undeclared reference to 'frobnicate'"),
        ("true && selff(1)", ":1:14: undeclared reference to 'selff'"),
        ("has(self)", ":1:5: invalid argument to has() macro"),
        ("has(self.nope)", ":1:4: undefined field 'nope'"),
        ("self.sizes[true] == 1", ":1:11: found no matching overload for '_[_]'"),
        ("self.name.matches(')')", ":1:19: invalid matches argument"),
        ("self.name > 1", ":1:11: found no matching overload for '_>_'"),
        ("self.hidden == 1", "undefined field 'hidden'"),
        ("self.namespace == ''", "undefined field 'namespace'"),
        ("self.`no-such` == ''", "undefined field 'no-such'"),
        ("self.`a` b`", "Syntax error: "),
        ("format.nope().validate('') == ''", "undeclared reference to 'format'"),
        ("other > 1", "undeclared reference to 'other' (in container '')"),
        ("selff(1)", "undeclared reference to 'selff' (in container '')"),
        ("self.name.frobnicate()", "undeclared reference to 'frobnicate' (in container '')"),
        ("self.name > 1", "found no matching overload for '_>_' applied to '(string, int)'"),
        (
            "self.name.startsWith(1)",
            "found no matching overload for 'startsWith' applied to 'string.(int)'",
        ),
        (
            "self.replicas == 'x'",
            "found no matching overload for '_==_' applied to '(int, string)'",
        ),
        ("self.name == null", "found no matching overload for '_==_' applied to '(string, null)'"),
        ("self.replicas.x", "type 'int' does not support field selection"),
        ("self.replicas.all(x, true)", "cannot be range of a comprehension"),
        ("self.sizes.all(x, x)", "expected type 'bool' but found 'int'"),
        ("[1, 'a'].size() == 2", "expected type 'int' but found 'string'"),
        ("self.name.matches('(')", "invalid matches argument"),
        ("has(self)", "invalid argument to has() macro"),
        ("self.\nname +", "ERROR: <input>:2:7: Syntax error: mismatched input '<EOF>'"),
        ("1 +* 2", "Syntax error"),
        ("'abc", "Syntax error: a text does not end"),
        ("\"\\q\"", "Syntax error"),
        ("9223372036854775808", "Syntax error: invalid int literal"),
        ("if", "reserved identifier: if"),
        ("", "Syntax error"),
    ] {
        let found = said(text);
        assert!(
            found.starts_with("ERROR: <input>:") && found.contains(expected),
            "{text}: {found}"
        );
    }
}

#[test]
fn what_fails_says_why() {
    for (text, expected) in [
        ("self.absent == 'x'", "no such key: absent"),
        ("self.labels.none == 'x'", "no such key: none"),
        ("self.sizes[7] == 1", "index out of bounds: 7"),
        ("self.sizes[-1] == 1", "index out of bounds: -1"),
        ("1 / (self.replicas - 3) == 1", "division by zero"),
        ("1 % (self.replicas - 3) == 1", "modulus by zero"),
        ("9223372036854775807 + self.replicas > 0", "integer overflow"),
        ("-9223372036854775808 / -1 == self.replicas", "integer overflow"),
        ("0u - 1u == 1u", "unsigned integer overflow"),
        ("self.target.size() + self.target.foo == 1", "no such overload"),
        ("self.target + 1 == 2", "no such overload"),
        ("int('x') == 1", "type conversion error from 'string' to 'int': \"x\""),
        ("self.name.substring(9) == ''", "index out of range: 9"),
        ("self.name.substring(2, 1) == ''", "invalid substring range. start: 2, end: 1"),
        ("self.name.matches(self.name + '(')", "error parsing regexp: "),
        ("duration('9223372036s') + duration('9223372036s') > self.wait", "duration overflow"),
        (
            "timestamp('9999-12-30T00:00:00Z') + duration('90000h') > self.when",
            "timestamp overflow",
        ),
        ("[].map(x, x).max() == 1", "max called on empty list"),
        ("{'a': 1, 'a': 2}.size() == 1", "insert failed: key a already exists"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("self.when.getHours('Mars/Base') == 1", "unknown time zone Mars/Base"),
        ("self.when.getHours('+99:00') == 1", "unknown time zone +99:00"),
        (
            "semver('v1').major() == 1",
            "type conversion error from 'string' to 'kubernetes.Semver': \"v1\"",
        ),
        ("ip('x').family() == 4", "IP Address \"x\" parse error"),
    ] {
        let found = said(text);
        assert!(found.starts_with(expected), "{text}: {found}");
    }
}

#[test]
fn costs_are_bounded() {
    let list = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
    let deep = |depth: usize| {
        let walks: String = (0..depth).map(|index| format!("{list}.all(x{index}, ")).collect();
        format!("{walks}true{}", ")".repeat(depth))
    };
    assert_eq!(said(&deep(3)), "true");
    let limit = "operation cancelled: actual cost limit exceeded";
    assert_eq!(said(&deep(8)), limit);
    // Also in what would otherwise not matter, and where the work is in one call.
    assert_eq!(said(&format!("true || {}", deep(8))), "true");
    assert_eq!(said(&format!("{} || true", deep(8))), limit);
    let double = |times: usize| {
        let begin = "['0123456789'].map(x, x + x)".to_owned();
        (0..times).fold(begin, |text, _| format!("{text}.map(x, x + x)")) + ".size() == 1"
    };
    assert_eq!(said(&double(10)), "true");
    assert_eq!(said(&double(40)), limit);
    let growing = format!(
        "{0}.map(a, {0}.map(b, {0}.map(c, 'x'.replace('', 'yyyyyyyyyy')).join()).join()).join().replace('x', 'zzzzzzzzzzzzzzzzzzzz').replace('z', 'zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz').replace('z', 'zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz').size() > 0",
        list
    );
    assert_eq!(said(&growing), limit);
}

/// What copies or walks a long text costs by its length, whatever the step is.
#[test]
fn long_texts_cost_by_their_length() {
    let kind = Type::object([("text", Type::String), ("map", Type::map(Type::String, Type::Int))]);
    let object = |length: usize| {
        let text = format!("/{}", "a".repeat(length));
        json!({"text": text.as_str(), "map": {text.as_str(): 1}})
    };
    let (short, long) = (object(10), object(100_000));
    for text in [
        "self.map.all(k, true)",
        "self.map == dyn({'a': 1})",
        "self.map[?self.text].hasValue()",
        "self.text in self.map",
        "{self.text: 1}.size() == 1",
        "isURL(self.text)",
        "isIP(self.text)",
        "isCIDR(self.text)",
        "isQuantity(self.text)",
        "url(self.text).getEscapedPath() == ''",
        "'%s'.format([self.map]) == ''",
        "self.text + '' == self.text",
        "self.text.contains('b')",
        "self.text.size() == 1",
        "self.text.split('/').size() == 2",
        "self.text.matches('b')",
        "bytes(self.text).size() == 1",
    ] {
        let program = Program::compile(text, &[("self", kind.clone())]).expect(text);
        let cost = |object: &Json| program.run(&[("self", Value::of(object, &kind))]).1;
        assert!(cost(&long) >= cost(&short) + 9_000, "{text}: {} {}", cost(&long), cost(&short));
    }
}

/// A pattern that takes long although it is short costs so.
#[test]
fn a_large_pattern_costs_more_than_a_small_one() {
    let kind = Type::String;
    let text = Json::String("a".repeat(10_000));
    let cost = |text_of: &str| {
        let program = Program::compile(text_of, &[("self", kind.clone())]).expect("compiles");
        let (value, cost) = program.run(&[("self", Value::of(&text, &kind))]);
        (value.is_ok(), cost)
    };
    let (_, small) = cost("self.matches('^a+$')");
    let (_, large) = cost("self.matches('^(a{40}){40}b$')");
    assert!(large > 50 * small, "{large} {small}");
    let found = Program::compile("self.matches('((a{100}){100}){100}')", &[("self", kind.clone())]);
    assert!(found.expect_err("too large").contains("invalid matches argument"));
}

#[test]
fn expressions_have_a_depth_and_a_length() {
    let limit = format!("expression recursion limit exceeded: {MAX_DEPTH}");
    for (open, middle, close) in [
        ("(", "true", ")"),
        ("!", "true", ""),
        ("- ", "self.replicas", ""),
        ("[", "1", "]"),
        ("{1:", "1", "}"),
        ("true ? true : ", "true", ""),
        ("[1].all(x, ", "true", ")"),
        ("", "1", " + 1"),
        ("(", "1", ") + 1"),
        ("", "self.name", ".trim()"),
        ("", "dyn([])", "[0]"),
        ("string(", "''", ")"),
    ] {
        for depth in [MAX_DEPTH + 1, 20_000] {
            let text = format!("{}{middle}{}", open.repeat(depth), close.repeat(depth));
            let found = said(&text);
            assert!(
                found.contains(&limit) || found.contains("size exceeds limit"),
                "{open}{close}: {found:.200}"
            );
        }
        let depth = MAX_DEPTH / 2 - 4;
        let text = format!("{}{middle}{}", open.repeat(depth), close.repeat(depth));
        assert!(!said(&text).contains("limit exceeded"), "{open}{close}");
    }
    // Terms of && and || stand beside each other.
    let many = vec!["self.replicas == 3"; 2_000].join(" && ");
    assert_eq!(said(&many), "true");
    assert!(said(&" ".repeat(MAX_EXPRESSION_BYTES + 1)).contains("size exceeds limit"));
}

#[test]
fn the_variables_that_are_used_are_known() {
    let variables = [("self", Type::Dyn), ("oldSelf", Type::Dyn)];
    let uses = |text: &str| Program::compile(text, &variables).expect("compiles").uses("oldSelf");
    assert!(uses("self.a == oldSelf.a"));
    assert!(!uses("self.a.all(oldSelf, oldSelf == 1)"));
    assert!(!uses("self.oldSelf == 'oldSelf'"));
}
