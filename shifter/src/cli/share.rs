//! Shares of new flows as people write them: `5%`, `0.05%`, `1/3`.
//!
//! Only the form is looked at here, so that a slip of the pen is wrong usage;
//! what a share means is the agent's.

/// Passes a share on as it was written.
pub(super) fn parse(text: &str) -> Result<String, String> {
    let is_share = match (text.strip_suffix('%'), text.split_once('/')) {
        (Some(percent), _) => is_percent(percent),
        (None, Some((part, whole))) => {
            let (part, whole) = (number(part), number(whole));
            part.zip(whole)
                .is_some_and(|(part, whole)| whole > 0 && part <= whole)
        }
        (None, None) => text == "0",
    };
    match is_share {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no weight: write a percentage with up to 4 decimals (5%, 0.05%) or a fraction (1/3), from 0 to 100%"
        )),
    }
}

fn is_percent(text: &str) -> bool {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let parts = number(whole).zip(number(decimals));
    let fits = whole.len() <= 3 && decimals.len() <= 4;
    fits && parts.is_some_and(|(whole, decimals)| whole < 100 || (whole == 100 && decimals == 0))
}

/// Up to 9 digits.
fn number(text: &str) -> Option<u32> {
    let is_number = text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Weight;

    #[test]
    fn what_the_agent_takes_is_taken_and_nothing_else() {
        for text in [
            "0",
            "0%",
            "5%",
            "0.05%",
            "12.5%",
            "100%",
            "100.0%",
            "99.9999%",
            "1/3",
            "3/3",
            "007%",
            "0/5",
            "999999999/999999999",
            "",
            "%",
            "5",
            "-5%",
            "101%",
            "100.1%",
            "5.00001%",
            "1/0",
            "3/2",
            "1/",
            "/3",
            "5 %",
            "+5%",
            "5.%",
            ".5%",
            "nan%",
            "1e1%",
            "1/3%",
            "1/2/3",
            "1/+3",
            "1000000000/1000000000",
            "0000%",
            "half",
            "500%",
        ] {
            assert_eq!(
                parse(text).is_ok(),
                text.parse::<Weight>().is_ok(),
                "{text:?}"
            );
        }
    }
}
