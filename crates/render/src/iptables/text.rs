//! Rules as text: printed exactly as `iptables-save` prints them, so that what is read back is what
//! was written, in the legacy and the nft variant alike.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{Family, PortRange, Protocol};

use super::language::{
    CHANCE_ONE, ChainName, Comment, Hook, Match, Rule, Table, TableId, TableName, Target,
};
use super::state::{Command, IptablesObserved, Transaction};

/// Decimal places of a chance in `iptables-save`: more than 31 bits need.
const CHANCE_DIGITS: u32 = 11;

/// Commands from which on the nft variant shall read the whole table first. For each line it walks
/// the names of all chains that the input has named, unless it knows them all: 33 s of CPU for
/// 10,000 Services, against 2 s.
pub const READ_FIRST_COMMANDS_MIN: usize = 5_000;

/// What `iptables-restore --noflush` carries out for a transaction. `is_nft`: in the nft variant.
pub fn restore(transaction: &Transaction, is_nft: bool) -> String {
    let family = transaction.table.family;
    let mut text = format!("*{}\n", transaction.table.name.text());
    if is_nft && transaction.commands.len() >= READ_FIRST_COMMANDS_MIN {
        text.push_str(&read_first(transaction));
    }
    for command in &transaction.commands {
        // Writing to a String cannot fail.
        let _ = match command {
            Command::Write(chain) => writeln!(text, ":{chain} - [0:0]"),
            Command::Append(chain, rule) => writeln!(text, "-A {chain} {}", print(family, rule)),
            Command::InsertHook(hook, rule) => {
                writeln!(text, "-I {} 1 {}", hook.text(), print(family, rule))
            }
            Command::DeleteHook(hook, rule) => {
                writeln!(text, "-D {} {}", hook.text(), print(family, rule))
            }
            Command::Delete(chain) => writeln!(text, "-X {chain}"),
        };
    }
    text.push_str("COMMIT\n");
    text
}

/// Lets the nft variant read the whole table. From then on it believes to have seen all of the
/// kernel's own chains, also those that are not there yet (1.8.9), and a rule for one of these fails:
/// so they are made before, by a rule that goes at once.
fn read_first(transaction: &Transaction) -> String {
    let mut text = String::new();
    for command in &transaction.commands {
        if let Command::InsertHook(hook, _) = command {
            let rule = format!("{} -m comment --comment flatnet", hook.text());
            let _ = writeln!(text, "-A {rule}\n-D {rule}");
        }
    }
    text.push_str("-S\n");
    text
}

/// One rule without its chain.
pub fn print(family: Family, rule: &Rule) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut protocol = Protocol::Tcp;
    for one in &rule.matches {
        if let Match::Protocol(known) = one {
            protocol = *known;
        }
        words.push(print_match(family, protocol, one));
    }
    words.push(print_target(&rule.target));
    words.join(" ")
}

fn print_match(family: Family, protocol: Protocol, one: &Match) -> String {
    match one {
        Match::Source(range) => format!("-s {}", range.trunc()),
        Match::Destination(range) => format!("-d {}", range.trunc()),
        Match::Protocol(protocol) => format!("-p {}", word(*protocol)),
        Match::Ports { first, last } if first == last => {
            format!("-m {} --dport {first}", word(protocol))
        }
        Match::Ports { first, last } => format!("-m {} --dport {first}:{last}", word(protocol)),
        Match::FromThisNode => "-m addrtype --src-type LOCAL".into(),
        Match::NewFlow => "-m conntrack --ctstate NEW".into(),
        Match::WithoutMark(bits) => format!("-m mark ! --mark {bits:#x}/{bits:#x}"),
        Match::Chance(chance) => {
            format!("-m statistic --mode random --probability {}", decimal(*chance))
        }
        Match::Remembered { endpoint, timeout_s } => format!(
            "-m recent --rcheck --seconds {timeout_s} --reap --name {endpoint} --mask {} --rsource",
            whole_mask(family)
        ),
        Match::Remember { endpoint } => {
            format!("-m recent --set --name {endpoint} --mask {} --rsource", whole_mask(family))
        }
        Match::Comment(comment) => format!("-m comment --comment \"{}\"", comment.text()),
    }
}

fn print_target(target: &Target) -> String {
    match target {
        Target::Jump(chain) => format!("-j {chain}"),
        Target::Return => "-j RETURN".into(),
        Target::Accept => "-j ACCEPT".into(),
        Target::Drop => "-j DROP".into(),
        Target::SetMark(bits) => format!("-j MARK --set-xmark {bits:#x}/{bits:#x}"),
        Target::ClearMark(bits) => format!("-j MARK --set-xmark 0x0/{bits:#x}"),
        Target::Translate { address, port: None } => format!("-j DNAT --to-destination {address}"),
        Target::Translate { address, port: Some(port) } => {
            format!("-j DNAT --to-destination {}", SocketAddr::new(*address, *port))
        }
        Target::Masquerade { ports: None } => "-j MASQUERADE --random-fully".into(),
        Target::Masquerade { ports: Some(ports) } => {
            format!("-j MASQUERADE --to-ports {} --random-fully", print_ports(*ports))
        }
        Target::Unknown(text) => text.to_string(),
    }
}

fn print_ports(ports: PortRange) -> String {
    if ports.first() == ports.last() { ports.first().to_string() } else { ports.to_string() }
}

/// Reads what `iptables-save` printed of one family and adds what is ours; other lines are others'
/// (invariant 4).
pub fn read(observed: &mut IptablesObserved, family: Family, text: &str) {
    let mut table: Option<&mut Table> = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            let name = TableName::ALL.into_iter().find(|known| known.text() == name);
            let id = name.map(|name| TableId { family, name });
            table = id.map(|id| observed.tables.entry(id).or_default());
            continue;
        }
        let Some(table) = &mut table else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().and_then(ChainName::parse);
            if let Some(name) = name {
                table.chains.entry(name).or_default();
            }
        } else if let Some((chain, rule)) =
            line.strip_prefix("-A ").and_then(|line| line.split_once(' '))
        {
            read_rule(table, family, chain, rule);
        }
    }
    observed.tables.retain(|_, table| !table.is_empty());
}

fn read_rule(table: &mut Table, family: Family, chain: &str, text: &str) {
    let rule = parse(family, text);
    if let Some(chain) = ChainName::parse(chain) {
        let unknown = || Rule { matches: vec![], target: Target::Unknown(text.into()) };
        table.chains.entry(chain).or_default().push(rule.unwrap_or_else(unknown));
    } else if let Some(hook) = Hook::ALL.into_iter().find(|hook| hook.text() == chain)
        && let Some(rule) = rule.filter(|rule| rule.jump().is_some())
    {
        table.hooks.entry(hook).or_default().push(rule);
    }
}

/// Reads one rule without its chain; `None` for what we do not write.
pub fn parse(family: Family, text: &str) -> Option<Rule> {
    let words = words(text)?;
    let mut words = words.iter().map(String::as_str).peekable();
    let mut matches = Vec::new();
    loop {
        match words.next()? {
            "-s" => matches.push(Match::Source(parse_range(family, words.next()?)?)),
            "-d" => matches.push(Match::Destination(parse_range(family, words.next()?)?)),
            "-p" => matches.push(Match::Protocol(parse_protocol(words.next()?)?)),
            "-m" => matches.push(parse_match(family, words.next()?, &mut words)?),
            "-j" => {
                let target = parse_target(words.next()?, &mut words)?;
                return words.next().is_none().then_some(Rule { matches, target });
            }
            _ => return None,
        }
    }
}

fn parse_match<'a>(
    family: Family,
    name: &str,
    words: &mut impl Iterator<Item = &'a str>,
) -> Option<Match> {
    let mut expect = |expected: &[&str]| {
        expected.iter().try_for_each(|word| (words.next()? == *word).then_some(()))
    };
    Some(match name {
        "tcp" | "udp" | "sctp" => {
            expect(&["--dport"])?;
            let ports = words.next()?;
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            Match::Ports { first: first.parse().ok()?, last: last.parse().ok()? }
        }
        "addrtype" => expect(&["--src-type", "LOCAL"]).map(|()| Match::FromThisNode)?,
        "conntrack" => expect(&["--ctstate", "NEW"]).map(|()| Match::NewFlow)?,
        "mark" => {
            expect(&["!", "--mark"])?;
            let (value, mask) = words.next()?.split_once('/')?;
            Match::WithoutMark((value == mask).then(|| parse_bits(value))??)
        }
        "statistic" => {
            expect(&["--mode", "random", "--probability"])?;
            Match::Chance(parse_decimal(words.next()?)?)
        }
        "comment" => {
            expect(&["--comment"])?;
            Match::Comment(Comment::new(words.next()?))
        }
        "recent" => match words.next()? {
            "--rcheck" => {
                (words.next()? == "--seconds").then_some(())?;
                let timeout_s = words.next()?.parse().ok()?;
                (words.next()? == "--reap").then_some(())?;
                Match::Remembered { endpoint: parse_list(family, words)?, timeout_s }
            }
            "--set" => Match::Remember { endpoint: parse_list(family, words)? },
            _ => return None,
        },
        _ => return None,
    })
}

fn parse_list<'a>(family: Family, words: &mut impl Iterator<Item = &'a str>) -> Option<ChainName> {
    (words.next()? == "--name").then_some(())?;
    let list = ChainName::parse(words.next()?)?;
    let rest = ["--mask", whole_mask(family), "--rsource"];
    rest.iter().try_for_each(|word| (words.next()? == *word).then_some(()))?;
    Some(list)
}

fn parse_target<'a>(name: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Target> {
    Some(match name {
        "RETURN" => Target::Return,
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "MARK" => {
            (words.next()? == "--set-xmark").then_some(())?;
            match words.next()?.split_once('/')? {
                ("0x0", mask) => Target::ClearMark(parse_bits(mask)?),
                (value, mask) if value == mask => Target::SetMark(parse_bits(value)?),
                _ => return None,
            }
        }
        "DNAT" => {
            (words.next()? == "--to-destination").then_some(())?;
            parse_destination(words.next()?)?
        }
        "MASQUERADE" => {
            let mut option = words.next()?;
            let mut ports = None;
            if option == "--to-ports" {
                ports = Some(parse_ports(words.next()?)?);
                option = words.next()?;
            }
            (option == "--random-fully").then_some(Target::Masquerade { ports })?
        }
        chain => Target::Jump(ChainName::parse(chain)?),
    })
}

fn parse_ports(text: &str) -> Option<PortRange> {
    match text.parse::<u16>() {
        Ok(port) => PortRange::new(port, port),
        Err(_) => text.parse().ok(),
    }
}

fn parse_destination(text: &str) -> Option<Target> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(Target::Translate { address, port: None }),
        Err(_) => {
            let socket: SocketAddr = text.parse().ok()?;
            Some(Target::Translate { address: socket.ip(), port: Some(socket.port()) })
        }
    }
}

fn parse_range(family: Family, text: &str) -> Option<IpNet> {
    let range = match text.parse::<IpNet>() {
        Ok(range) => range,
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    (Family::of(&range.addr()) == family).then_some(range)
}

fn parse_protocol(text: &str) -> Option<Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    all.into_iter().find(|protocol| word(*protocol) == text)
}

fn parse_bits(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The words of a line; `None` when a quotation does not end.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut letters = line.chars().peekable();
    while letters.peek().is_some() {
        let mut word = String::new();
        let mut quoted = false;
        loop {
            match letters.next() {
                None if quoted => return None,
                None => break,
                Some('"') => quoted = !quoted,
                Some('\\') if quoted => word.push(letters.next()?),
                Some(' ') if !quoted => break,
                Some(letter) => word.push(letter),
            }
        }
        words.push(word);
    }
    Some(words)
}

/// A chance as the decimal that the program rounds to the same number of 31 bits.
fn decimal(chance: u32) -> String {
    let scale = 10_u64.pow(CHANCE_DIGITS);
    let one = u128::from(CHANCE_ONE);
    let scaled = (u128::from(chance) * u128::from(scale) + one / 2) / one;
    let (whole, part) = (scaled / u128::from(scale), scaled % u128::from(scale));
    format!("{whole}.{part:0width$}", width = CHANCE_DIGITS as usize)
}

fn parse_decimal(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = u32::try_from(part.len()).ok().filter(|&digits| digits <= CHANCE_DIGITS)?;
    let part: u64 = if part.is_empty() { 0 } else { part.parse().ok()? };
    let scale = 10_u64.pow(digits);
    let value = whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(part)?;
    let scaled = u128::from(value) * u128::from(CHANCE_ONE) + u128::from(scale) / 2;
    u32::try_from(scaled / u128::from(scale)).ok().filter(|&chance| chance <= CHANCE_ONE)
}

const fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

const fn whole_mask(family: Family) -> &'static str {
    match family {
        Family::V4 => "255.255.255.255",
        Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}
