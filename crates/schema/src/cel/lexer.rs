//! Text to tokens (cel-spec, "Lexis").

use super::Issue;

/// A token and where it begins, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) at: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind {
    Name(String),
    /// A field's name between backticks, as it stands in JSON.
    Field(String),
    /// Without its sign, which is an operator.
    Int(u64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Sign(&'static str),
    End,
}

/// Longer signs first.
const SIGNS: &[&str] = &[
    "[?", "{?", ".?", "&&", "||", "<=", ">=", "==", "!=", "(", ")", "[", "]", "{", "}", ".", ",",
    ":", "?", "+", "-", "*", "/", "%", "<", ">", "!",
];

/// All tokens of a text; the last one is [`TokenKind::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, Issue> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let kind = lexer.next()?;
        let is_end = kind == TokenKind::End;
        tokens.push(Token { kind, at });
        if is_end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let one = self.peek()?;
        self.at += one.len_utf8();
        Some(one)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|one| !wanted(one)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn issue(&self, message: impl Into<String>) -> Issue {
        Issue { at: self.at, message: format!("Syntax error: {}", message.into()) }
    }

    fn skip_blanks(&mut self) {
        loop {
            self.take_while(|one| matches!(one, ' ' | '\t' | '\n' | '\r' | '\u{c}'));
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|one| one != '\n');
        }
    }

    fn next(&mut self) -> Result<TokenKind, Issue> {
        let Some(first) = self.peek() else { return Ok(TokenKind::End) };
        if let Some(text) = self.quoted()? {
            return Ok(text);
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let name = self.take_while(|one| one.is_ascii_alphanumeric() || one == '_');
            return Ok(TokenKind::Name(name.to_owned()));
        }
        if first == '`' {
            return self.field();
        }
        let mut following = self.rest().chars().skip(1);
        let has_digit = following.next().is_some_and(|one| one.is_ascii_digit());
        if first.is_ascii_digit() || (first == '.' && has_digit) {
            return self.number();
        }
        let sign = SIGNS.iter().find(|sign| self.rest().starts_with(**sign));
        let Some(sign) = sign else {
            return Err(self.issue(format!("token recognition error at: '{first}'")));
        };
        self.at += sign.len();
        Ok(TokenKind::Sign(sign))
    }

    /// What stands between backticks (`EnableIdentifierEscapeSyntax`).
    fn field(&mut self) -> Result<TokenKind, Issue> {
        let begin = self.at;
        self.at += 1;
        let name = self.take_while(|one| one.is_ascii_alphanumeric() || "_.-/ ".contains(one));
        if name.is_empty() || self.take() != Some('`') {
            let message = "Syntax error: token recognition error at: '`'".to_owned();
            return Err(Issue { at: begin, message });
        }
        Ok(TokenKind::Field(name.to_owned()))
    }

    fn number(&mut self) -> Result<TokenKind, Issue> {
        let begin = self.at;
        if self.rest().starts_with("0x") {
            self.at += 2;
            let digits = self.take_while(|one| one.is_ascii_hexdigit());
            let number = u64::from_str_radix(digits, 16);
            return self.whole(number.ok(), begin);
        }
        let is_digit = |one: char| one.is_ascii_digit();
        let digits = self.take_while(is_digit);
        let mut is_double = false;
        let after_point = self.rest().chars().nth(1);
        if self.peek() == Some('.') && after_point.is_some_and(is_digit) {
            is_double = true;
            self.at += 1;
            self.take_while(is_digit);
        }
        let exponent = self.rest().trim_start_matches(['e', 'E']).trim_start_matches(['+', '-']);
        if matches!(self.peek(), Some('e' | 'E')) && exponent.starts_with(is_digit) {
            is_double = true;
            self.at = self.text.len() - exponent.len();
            self.take_while(is_digit);
        }
        if !is_double {
            return self.whole(digits.parse().ok(), begin);
        }
        let text = self.text.get(begin..self.at).unwrap_or_default();
        text.parse().map(TokenKind::Double).map_err(|_| self.issue("invalid double literal"))
    }

    fn whole(&mut self, number: Option<u64>, begin: usize) -> Result<TokenKind, Issue> {
        let issue = |kind: &str| Issue {
            at: begin,
            message: format!("Syntax error: invalid {kind} literal"),
        };
        if matches!(self.peek(), Some('u' | 'U')) {
            self.at += 1;
            return number.map(TokenKind::Uint).ok_or_else(|| issue("uint"));
        }
        number.map(TokenKind::Int).ok_or_else(|| issue("int"))
    }

    /// A text or octets, with `r` for raw and `b` for octets in front; `None` for anything else.
    fn quoted(&mut self) -> Result<Option<TokenKind>, Issue> {
        let is_quote = |one: char| matches!(one, '"' | '\'');
        // No more than the prefix is looked at: most tokens are no texts.
        let prefix: String =
            self.rest().chars().take(2).take_while(|one| !is_quote(*one)).collect();
        let (is_raw, is_bytes) = match prefix.to_ascii_lowercase().as_str() {
            "" => (false, false),
            "r" => (true, false),
            "b" => (false, true),
            "rb" | "br" => (true, true),
            _ => return Ok(None),
        };
        if !self.rest().get(prefix.len()..).is_some_and(|rest| rest.starts_with(is_quote)) {
            return Ok(None);
        }
        self.at += prefix.len();
        let rest = self.rest();
        let quote = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quote| rest.starts_with(quote));
        let Some(quote) = quote else { return Ok(None) };
        self.at += quote.len();
        let mut octets = Vec::new();
        loop {
            if self.rest().starts_with(quote) {
                self.at += quote.len();
                break;
            }
            match self.take() {
                None => return Err(self.issue("a text does not end")),
                Some('\n') if quote.len() == 1 => {
                    return Err(self.issue("a text does not end on its line"));
                }
                Some('\\') if !is_raw => self.escape(is_bytes, &mut octets)?,
                Some(one) => push(&mut octets, one),
            }
        }
        if is_bytes {
            return Ok(Some(TokenKind::Bytes(octets)));
        }
        // Escapes of texts are characters, so this never fails.
        let text = String::from_utf8(octets).map_err(|_| self.issue("a text is no UTF-8"))?;
        Ok(Some(TokenKind::Text(text)))
    }

    fn escape(&mut self, is_bytes: bool, octets: &mut Vec<u8>) -> Result<(), Issue> {
        let wrong = self.issue("a text has an escape that does not exist");
        let Some(one) = self.take() else { return Err(wrong) };
        let (length, radix, is_character) = match one {
            'x' | 'X' => (2, 16, false),
            'u' => (4, 16, true),
            'U' => (8, 16, true),
            '0'..='3' => {
                self.at -= 1;
                (3, 8, false)
            }
            other => {
                let plain = match other {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'v' => '\u{b}',
                    '\\' | '?' | '"' | '\'' | '`' => other,
                    _ => return Err(wrong),
                };
                push(octets, plain);
                return Ok(());
            }
        };
        let digits = self.rest().get(..length).unwrap_or_default();
        let code = u32::from_str_radix(digits, radix).map_err(|_| wrong.clone())?;
        self.at += length;
        match u8::try_from(code) {
            Ok(octet) if is_bytes && !is_character => octets.push(octet),
            _ => push(octets, char::from_u32(code).ok_or(wrong)?),
        }
        Ok(())
    }
}

fn push(octets: &mut Vec<u8>, one: char) {
    octets.extend_from_slice(one.encode_utf8(&mut [0; 4]).as_bytes());
}
