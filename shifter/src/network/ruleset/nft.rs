//! Reads `nft -j list ruleset`. Format: libnftables-json(5).

use std::{collections::HashMap, net::IpAddr};

use serde_json::Value;

use super::{Base, Chain, Family, Hook, Rule, Ruleset, Subject, Test, Verdict};

/// More elements than this in one set of concatenated keys are not looked at.
const ELEMENTS: usize = 4_096;

/// Elements of named sets and maps by family, table and name.
type Sets = HashMap<(String, String, String), Vec<Value>>;

/// Chains of the families that routed packets meet. The second value names
/// tables that hold rules of iptables which nft cannot show.
pub(super) fn parse(json: &str) -> Result<(Ruleset, Vec<(Family, String)>), serde_json::Error> {
    let whole: Value = serde_json::from_str(json)?;
    let empty = Vec::new();
    let objects = whole["nftables"].as_array().unwrap_or(&empty);
    let mut reader = Reader::default();
    for object in objects {
        for set in [&object["set"], &object["map"]] {
            if let Some(elements) = set["elem"].as_array() {
                reader.sets.insert(place(set), elements.clone());
            }
        }
        if let Some(chain) = parse_chain(&object["chain"]) {
            reader.ruleset.chains.push(chain);
        }
    }
    for object in objects {
        reader.read_rule(&object["rule"]);
    }
    Ok((reader.ruleset, reader.foreign))
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn place(object: &Value) -> (String, String, String) {
    (
        word(&object["family"]),
        word(&object["table"]),
        word(&object["name"]),
    )
}

fn family(object: &Value) -> Option<Family> {
    match object["family"].as_str()? {
        "ip" => Some(Family::Ip),
        "ip6" => Some(Family::Ip6),
        "inet" => Some(Family::Inet),
        _ => None,
    }
}

fn parse_chain(chain: &Value) -> Option<Chain> {
    let base = chain["hook"].as_str().map(|hook| Base {
        nat: chain["type"] == "nat",
        hook: match hook {
            "prerouting" => Hook::Prerouting,
            "forward" => Hook::Forward,
            _ => Hook::Other,
        },
        priority: chain["prio"].as_i64().unwrap_or(0),
        policy_drop: chain["policy"] == "drop",
    });
    Some(Chain {
        family: family(chain)?,
        table: word(&chain["table"]),
        name: word(&chain["name"]),
        base,
        rules: Vec::new(),
    })
}

#[derive(Default)]
struct Reader {
    ruleset: Ruleset,
    sets: Sets,
    foreign: Vec<(Family, String)>,
}

/// One rule under construction: alternatives of tests, one of which must hold.
struct Draft<'a> {
    sets: &'a Sets,
    rule: &'a Value,
    alternatives: Vec<Vec<Test>>,
    rules: Vec<Rule>,
    foreign: bool,
}

impl Reader {
    fn read_rule(&mut self, rule: &Value) {
        let (Some(family), Some(statements)) = (family(rule), rule["expr"].as_array()) else {
            return;
        };
        let (table, name) = (word(&rule["table"]), word(&rule["chain"]));
        let chains = &mut self.ruleset.chains;
        let Some(chain) = chains
            .iter_mut()
            .find(|chain| chain.family == family && chain.table == table && chain.name == name)
        else {
            return;
        };
        let mut draft = Draft {
            sets: &self.sets,
            rule,
            alternatives: vec![Vec::new()],
            rules: Vec::new(),
            foreign: false,
        };
        let ended = statements.iter().any(|statement| draft.read(statement));
        if !ended && draft.foreign {
            // What a target of iptables does here cannot be seen; it matters
            // only where it could translate.
            draft.finish(Verdict::Dnat);
            let nat = chain.base.as_ref().is_none_or(|base| base.nat);
            draft
                .rules
                .retain(|rule| nat || rule.verdict != Verdict::Dnat);
        }
        if draft.foreign && !self.foreign.contains(&(family, table.clone())) {
            self.foreign.push((family, table));
        }
        chain.rules.append(&mut draft.rules);
    }
}

impl Draft<'_> {
    /// Reads a statement; true when it ends the rule.
    fn read(&mut self, statement: &Value) -> bool {
        let Some((name, value)) = statement
            .as_object()
            .and_then(|object| object.iter().next())
        else {
            return false;
        };
        match name.as_str() {
            "match" => self.read_match(value),
            "vmap" => self.read_verdict_map(value),
            "xt" => {
                self.foreign = true;
                self.require(Test::is(Subject::Unknown));
                let target = value["type"] == "target";
                if target && matches!(value["name"].as_str(), Some("DNAT" | "REDIRECT" | "NETMAP"))
                {
                    return self.finish(Verdict::Dnat);
                }
            }
            "dnat" | "redirect" => {
                let key = &value["addr"]["map"]["key"];
                if !key.is_null() {
                    let data = value["addr"]["map"]["data"].clone();
                    self.require_any(key, &self.keys(&data), false);
                }
                return self.finish(Verdict::Dnat);
            }
            _ => {
                if let Some(verdict) = verdict(statement) {
                    return self.finish(verdict);
                }
            }
        }
        false
    }

    fn finish(&mut self, verdict: Verdict) -> bool {
        for tests in std::mem::take(&mut self.alternatives) {
            let verdict = verdict.clone();
            self.rules.push(Rule { tests, verdict });
        }
        true
    }

    fn require(&mut self, test: Test) {
        for alternative in &mut self.alternatives {
            alternative.push(test.clone());
        }
    }

    fn read_match(&mut self, value: &Value) {
        let negated = value["op"] == "!=";
        let known = matches!(value["op"].as_str(), Some("==" | "!=" | "in"));
        match self.elements(&value["right"]) {
            Some(elements) if known => self.require_any(&value["left"], &elements, negated),
            _ => self.require(Test::is(Subject::Unknown)),
        }
    }

    /// One of the elements must equal the key (or none, if negated).
    fn require_any(&mut self, key: &Value, elements: &[Value], negated: bool) {
        let Some(parts) = key["concat"].as_array() else {
            for test in tests(key, elements, negated) {
                self.require(test);
            }
            return;
        };
        let too_many = elements.len() * self.alternatives.len() > ELEMENTS;
        if negated || too_many {
            return self.require(Test::is(Subject::Unknown));
        }
        let mut alternatives = Vec::new();
        for element in elements {
            let empty = Vec::new();
            let values = bare(element)["concat"].as_array().unwrap_or(&empty);
            let more: Vec<Test> = parts
                .iter()
                .zip(values)
                .flat_map(|(part, value)| tests(part, std::slice::from_ref(value), false))
                .collect();
            for alternative in &self.alternatives {
                alternatives.push([alternative.clone(), more.clone()].concat());
            }
        }
        self.alternatives = alternatives;
    }

    fn read_verdict_map(&mut self, value: &Value) {
        let Some(pairs) = self.elements(&value["data"]) else {
            return self.require(Test::is(Subject::Unknown));
        };
        let before = self.alternatives.clone();
        for pair in &pairs {
            if let Some(verdict) = verdict(&pair[1]) {
                self.alternatives = before.clone();
                self.require_any(&value["key"], std::slice::from_ref(&pair[0]), false);
                self.finish(verdict);
            }
        }
        self.alternatives = before;
    }

    /// Elements of a set, a named set or a single value; `None` if the name is not known.
    fn elements(&self, right: &Value) -> Option<Vec<Value>> {
        if let Some(name) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            let (family, table, _) = place(self.rule);
            return self.sets.get(&(family, table, name.to_owned())).cloned();
        }
        let list = right["set"].as_array().or_else(|| right.as_array());
        Some(list.cloned().unwrap_or_else(|| vec![right.clone()]))
    }

    /// Keys of a map.
    fn keys(&self, data: &Value) -> Vec<Value> {
        let pairs = self.elements(data).unwrap_or_default();
        pairs.iter().map(|pair| pair[0].clone()).collect()
    }
}

/// An element without its timeout, counter or comment.
fn bare(element: &Value) -> &Value {
    match &element["elem"]["val"] {
        Value::Null => element,
        value => value,
    }
}

fn verdict(statement: &Value) -> Option<Verdict> {
    let (name, value) = statement.as_object()?.iter().next()?;
    match name.as_str() {
        "accept" => Some(Verdict::Accept),
        "drop" | "reject" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => Some(Verdict::Jump(word(&value["target"]))),
        "goto" => Some(Verdict::Goto(word(&value["target"]))),
        _ => None,
    }
}

/// What `left` being one of `elements` asks of a packet.
fn tests(left: &Value, elements: &[Value], negated: bool) -> Vec<Test> {
    let mut tests = Vec::new();
    let payload = &left["payload"];
    let names = || elements.iter().map(|element| word(bare(element))).collect();
    let all = |read: fn(&Value) -> Option<(IpAddr, IpAddr)>| {
        elements.iter().map(|element| read(bare(element))).collect()
    };
    let subject = match (payload["protocol"].as_str(), payload["field"].as_str()) {
        (Some(protocol), Some("dport")) => {
            if let Some(number) = super::protocol_by_name(protocol) {
                tests.push(Test::is(Subject::Protocol(vec![number])));
            }
            let ranges: Option<Vec<_>> = elements.iter().map(|e| port_range(bare(e))).collect();
            ranges.map(Subject::Port)
        }
        (Some("ip" | "ip6"), Some("daddr")) => {
            let ranges: Option<Vec<_>> = all(address_range);
            ranges.map(Subject::Address)
        }
        (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) => protocols(elements),
        (Some(protocol), _) => {
            // Another field of a transport header: at least that header is there.
            if let "tcp" | "udp" | "sctp" | "icmp" | "icmpv6" = protocol
                && let Some(number) = super::protocol_by_name(protocol)
            {
                tests.push(Test::is(Subject::Protocol(vec![number])));
            }
            None
        }
        _ => match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
            (Some("l4proto"), _) => protocols(elements),
            (Some("iifname" | "iif"), _) => Some(Subject::Input(names())),
            (Some("oifname" | "oif"), _) => Some(Subject::Output(names())),
            (_, Some("state")) => {
                let new = elements.iter().any(|element| bare(element) == "new");
                Some(Subject::NewFlow(new))
            }
            (_, Some("status")) => {
                let dnat = elements.iter().any(|element| bare(element) == "dnat");
                dnat.then_some(Subject::Translated)
            }
            _ => {
                let fib = &left["fib"];
                let by_destination = fib["result"] == "type"
                    && fib["flags"]
                        .as_array()
                        .is_some_and(|f| f.contains(&"daddr".into()));
                let local = elements.len() == 1 && bare(&elements[0]) == "local";
                (by_destination && local).then_some(Subject::Local)
            }
        },
    };
    tests.push(match subject {
        Some(subject) => Test { negated, subject },
        None => Test::is(Subject::Unknown),
    });
    tests
}

fn protocols(elements: &[Value]) -> Option<Subject> {
    let number = |element: &Value| match bare(element) {
        Value::String(name) => super::protocol_by_name(name),
        value => u8::try_from(value.as_u64()?).ok(),
    };
    let numbers: Option<Vec<u8>> = elements.iter().map(number).collect();
    numbers.map(Subject::Protocol)
}

fn port_range(value: &Value) -> Option<(u16, u16)> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value["range"].as_array() {
        Some(range) => Some((port(range.first()?)?, port(range.get(1)?)?)),
        None => port(value).map(|port| (port, port)),
    }
}

fn address_range(value: &Value) -> Option<(IpAddr, IpAddr)> {
    let address = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    if let Some(range) = value["range"].as_array() {
        return Some((address(range.first()?)?, address(range.get(1)?)?));
    }
    let prefix = &value["prefix"];
    if prefix.is_object() {
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        return Some(super::subnet(address(&prefix["addr"])?, length));
    }
    address(value).map(|address| (address, address))
}
