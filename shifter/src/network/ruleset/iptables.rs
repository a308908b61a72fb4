//! Reads `iptables-save` and `ip6tables-save`.

use std::net::IpAddr;

use super::{Base, Chain, Family, Hook, Rule, Subject, Test, Verdict};

/// Chains of all tables.
pub(super) fn parse(text: &str, family: Family) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut table = String::new();
    // Targets may be declared after their use only in other tables: two passes.
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim().to_owned();
        } else if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let name = words.next().unwrap_or_default().to_owned();
            let base = base(&table, &name, words.next() == Some("DROP"));
            chains.push(Chain {
                family,
                table: table.clone(),
                name,
                base,
                rules: Vec::new(),
            });
        }
    }
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim().to_owned();
        } else if let Some(rule) = line.strip_prefix("-A ") {
            read_rule(&mut chains, &table, &words(rule));
        }
    }
    chains
}

fn base(table: &str, chain: &str, policy_drop: bool) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "FORWARD" => Hook::Forward,
        "INPUT" | "OUTPUT" | "POSTROUTING" => Hook::Other,
        _ => return None,
    };
    let priority = match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" => -100,
        "security" => 50,
        _ => 0,
    };
    Some(Base {
        nat: table == "nat",
        hook,
        priority,
        policy_drop,
    })
}

/// Splits at blanks outside of double quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut escaped = false;
    for letter in line.chars() {
        match letter {
            _ if escaped => {
                word.push(letter);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

fn read_rule(chains: &mut [Chain], table: &str, words: &[String]) {
    let Some(name) = words.first() else {
        return;
    };
    let mut tests = Vec::new();
    let mut negated = false;
    let mut rest = words[1..].iter().map(String::as_str);
    let mut target = None;
    while let Some(option) = rest.next() {
        match option {
            "!" => {
                negated = true;
                continue;
            }
            "-j" | "-g" => {
                target = rest.next().map(|name| (option == "-g", name.to_owned()));
                break;
            }
            "--comment" => drop(rest.next()),
            "-m" => tests.extend(module(rest.next().unwrap_or_default())),
            _ if option.starts_with('-') => {
                let subject = match takes_value(option) {
                    true => subject(option, rest.next().unwrap_or_default()),
                    false => None,
                };
                tests.push(match subject {
                    Some(subject) => Test { negated, subject },
                    None => Test::is(Subject::Unknown),
                });
            }
            // The value of an option that is not known here.
            _ => {}
        }
        negated = false;
    }
    let Some((is_goto, target)) = target else {
        return;
    };
    let is_chain = chains.iter().any(|c| c.table == table && c.name == target);
    let Some(verdict) = verdict(is_goto, is_chain, target) else {
        return;
    };
    if let Some(chain) = chains
        .iter_mut()
        .find(|chain| chain.table == table && chain.name == *name)
    {
        chain.rules.push(Rule { tests, verdict });
    }
}

fn verdict(is_goto: bool, is_chain: bool, target: String) -> Option<Verdict> {
    match target.as_str() {
        "ACCEPT" => Some(Verdict::Accept),
        "DROP" | "REJECT" => Some(Verdict::Drop),
        "RETURN" => Some(Verdict::Return),
        "DNAT" | "REDIRECT" | "NETMAP" => Some(Verdict::Dnat),
        _ if is_chain && is_goto => Some(Verdict::Goto(target)),
        _ if is_chain => Some(Verdict::Jump(target)),
        _ => None,
    }
}

/// A module whose options are read below asks nothing by itself.
fn module(name: &str) -> Option<Test> {
    let read = [
        "tcp",
        "udp",
        "comment",
        "conntrack",
        "state",
        "addrtype",
        "multiport",
    ];
    (!read.contains(&name)).then(|| Test::is(Subject::Unknown))
}

fn takes_value(option: &str) -> bool {
    matches!(
        option,
        "-d" | "-p"
            | "-i"
            | "-o"
            | "--dport"
            | "--dports"
            | "--ctstate"
            | "--state"
            | "--ctstatus"
            | "--dst-type"
    )
}

fn subject(option: &str, value: &str) -> Option<Subject> {
    let list = || value.split(',');
    let interface = || vec![value.replace('+', "*")];
    match option {
        "-d" => {
            let range = address_range(value)?;
            Some(Subject::Address(vec![range]))
        }
        "-p" => Some(Subject::Protocol(vec![super::protocol_by_name(value)?])),
        "-i" => Some(Subject::Input(interface())),
        "-o" => Some(Subject::Output(interface())),
        "--dport" | "--dports" => {
            let ranges: Option<Vec<_>> = list().map(port_range).collect();
            ranges.map(Subject::Port)
        }
        "--ctstate" | "--state" if value == "DNAT" => Some(Subject::Translated),
        "--ctstate" | "--state" => Some(Subject::NewFlow(list().any(|state| state == "NEW"))),
        "--ctstatus" if value == "DNAT" => Some(Subject::Translated),
        "--dst-type" if value == "LOCAL" => Some(Subject::Local),
        _ => None,
    }
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    match text.split_once(':') {
        Some((low, high)) => Some((low.parse().ok()?, high.parse().ok()?)),
        None => text.parse().ok().map(|port| (port, port)),
    }
}

fn address_range(text: &str) -> Option<(IpAddr, IpAddr)> {
    match text.split_once('/') {
        Some((address, prefix)) => Some(super::subnet(address.parse().ok()?, prefix.parse().ok()?)),
        None => text.parse().ok().map(|address| (address, address)),
    }
}
