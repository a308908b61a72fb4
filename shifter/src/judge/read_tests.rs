//! Tests of how gates are read: defaults, what is written is read again, refusals.

use super::*;
use crate::{
    judge::tests::{read, try_read},
    model::json,
};

#[test]
fn defaults_are_those_of_the_documentation() {
    let gates = read(r#"[{ judge = "sequential" }, { judge = "mann-whitney" }]"#);
    let Judge::Sequential(it) = &gates[0].judge else {
        panic!()
    };
    assert_eq!(it.alpha, Ratio::percent(5));
    assert_eq!(it.min_effect, MinEffect::default());
    assert_eq!(it.measures, [Measure::Failures, Measure::Handshake]);
    assert_eq!(it.pass_when, PassWhen::NoAlarm);
    assert_eq!(
        (gates[0].min_samples, gates[0].name.as_str()),
        (100, "sequential")
    );
    let Judge::MannWhitney(it) = &gates[1].judge else {
        panic!()
    };
    assert_eq!(
        (it.confidence, it.tolerance),
        (Ratio::percent(98), Ratio::percent(25))
    );
    assert_eq!(it.allowed_increase.get(), 1.0);
}

#[test]
fn what_is_written_is_read_again() {
    let gates = read(
        r#"[
        { judge = "sequential", alpha = "1%", measures = ["first-byte"], pass_when = "shown",
          min_effect = { ratio = "0%", time = "250us", time_relative = "3.5%" }, min_samples = 7 },
        { judge = "threshold", failure_ratio_max = "1%", handshake_p99_max = "50ms",
          duration_p50_max = "1s", backend_retransmit_ratio_max = "250%", on_fail = "hold" },
        { judge = "mann-whitney", measure = "duration", direction = "either", effect = "cles",
          allowed_increase = 0.6, allowed_decrease = 0.25, tolerance = "0%" },
        { judge = "prometheus", url = "http://127.0.0.1:9090", query = "up == 1", min = -1e3, max = 2 },
        { name = "ask", judge = "webhook", url = "http://[::1]:80/x?y=1", type = "confirm-rollout",
          metadata = { b = "2", a = "1" }, interval = "1m", timeout = "100ms" },
        { judge = "exec", file = "check.sh", on_error = "advance" },
    ]"#,
    );
    assert_eq!(gates.len(), 6);
    for gate in gates {
        let text = gate.to_json().to_string();
        let again = super::gate(&json::from_json(&text).unwrap()).unwrap();
        assert_eq!(again, gate, "{text}");
        assert_eq!(again.to_json().to_string(), text);
    }
}

#[test]
fn hooks_whose_answer_is_not_waited_for_do_not_hold() {
    for (hook, policy) in [
        ("rollback", Policy::Advance),
        ("event", Policy::Advance),
        ("rollout", Policy::Hold),
    ] {
        let text = format!(r#"[{{ judge = "webhook", url = "http://a", type = "{hook}" }}]"#);
        assert_eq!(read(&text)[0].on_error, policy, "{hook}");
    }
}

#[test]
fn wrong_gates_are_refused_with_what_would_be_right() {
    for (text, part) in [
        ("1", "gates is a number: write a list of gates"),
        ("[1]", "a gate is a number: write a table"),
        ("[{}]", "lacks the key judge"),
        (
            "[{ judge = 1 }]",
            "judge is a number: write one of \"sequential\"",
        ),
        ("[{ judge = \"sequentail\" }]", "is not known: write one of"),
        (
            "[{ judge = \"sequential\", alhpa = \"5%\" }]",
            "did you mean \"alpha\"?",
        ),
        (
            "[{ judge = \"sequential\", alpha = \"60%\" }]",
            "out of range: write 0.0001% to 50%",
        ),
        (
            "[{ judge = \"sequential\", alpha = 5 }]",
            "write it in quotes",
        ),
        ("[{ judge = \"sequential\", measures = [] }]", "it is empty"),
        (
            "[{ judge = \"sequential\", measures = [\"failures\", \"failures\"] }]",
            "occurs twice",
        ),
        (
            "[{ judge = \"sequential\", min_samples = 0 }]",
            "out of range: write 1",
        ),
        (
            "[{ judge = \"sequential\", min_effect = { time = \"1h\" } }]",
            "out of range: write 0ms to 30000ms",
        ),
        (
            "[{ judge = \"sequential\", on_no_data = \"stop\" }]",
            "write one of \"hold\", \"advance\", \"rollback\"",
        ),
        (
            "[{ judge = \"sequential\" }, { judge = \"sequential\" }]",
            "two gates are called \"sequential\"",
        ),
        ("[{ judge = \"threshold\" }]", "bounds nothing"),
        (
            "[{ judge = \"threshold\", failure_ratio_max = \"101%\" }]",
            "write 0% to 100%",
        ),
        (
            "[{ judge = \"mann-whitney\", measure = \"failures\" }]",
            "a failure has none",
        ),
        (
            "[{ judge = \"mann-whitney\", allowed_increase = 0.9 }]",
            "out of range: write 1 to 1000",
        ),
        (
            "[{ judge = \"prometheus\", url = \"http://a\", query = \"up\" }]",
            "bounds nothing",
        ),
        (
            "[{ judge = \"prometheus\", url = \"http://a\", query = \"up\", min = 2, max = 1 }]",
            "nothing lies between",
        ),
        (
            "[{ judge = \"prometheus\", url = \"http://a\", query = \" \", max = 1 }]",
            "query has 1 bytes",
        ),
        (
            "[{ judge = \"prometheus\", url = \"ftp://a\", query = \"up\", max = 1 }]",
            "or https://HOST:PORT/PATH",
        ),
        (
            "[{ judge = \"prometheus\", url = \"http://a\", query = \"up\", max = \"1\" }]",
            "without quotes",
        ),
        (
            "[{ judge = \"prometheus\", url = \"http://a\", query = \"up\", max = 1, min_samples = 3 }]",
            "has no key \"min_samples\"",
        ),
        (
            "[{ judge = \"webhook\", url = \"http://a\" }]",
            "lacks the key type",
        ),
        (
            "[{ judge = \"webhook\", url = \"http://u:p@a/\", type = \"event\" }]",
            "password",
        ),
        (
            "[{ judge = \"webhook\", url = \"http://a\", type = \"event\", metadata = { a = 1 } }]",
            "metadata.a is no text",
        ),
        ("[{ judge = \"exec\" }]", "lacks the key file"),
        (
            "[{ judge = \"exec\", file = \"../sh\" }]",
            "without a path or arguments",
        ),
        (
            "[{ judge = \"exec\", file = \"sh -c x\" }]",
            "without a path or arguments",
        ),
        (
            "[{ judge = \"exec\", file = \"a\", timeout = \"1h\" }]",
            "write 100ms to 300000ms",
        ),
        (
            "[{ judge = \"exec\", file = \"a\", name = \"a b\" }]",
            "no name of a gate",
        ),
    ] {
        let error = try_read(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}
