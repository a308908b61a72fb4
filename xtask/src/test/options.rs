//! The command line of `cargo xtask test`.

use std::process::Command;

use anyhow::Result;

use crate::Usage;

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub long: bool,
    /// On other kernels, and nothing else.
    pub kernels: bool,
    pub filter: Option<String>,
    /// For the test programs.
    pub rest: Vec<String>,
}

impl Options {
    /// Reads `[--kernels] [--long] [FILTER] [-- ARGS]`.
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        for argument in arguments.by_ref() {
            match argument.as_str() {
                "--" => break,
                "--long" => options.long = true,
                "--kernels" => options.kernels = true,
                flag if flag.starts_with('-') => {
                    let text = format!(
                        "test has no option {flag}; what is for the test programs goes after --"
                    );
                    return Err(Usage(text).into());
                }
                filter if options.filter.is_none() => options.filter = Some(filter.to_owned()),
                second => {
                    return Err(
                        Usage(format!("test takes one FILTER, {second:?} is a second")).into(),
                    );
                }
            }
        }
        options.rest = arguments.cloned().collect();
        if options.kernels && !options.rest.is_empty() {
            let text = "test --kernels gives the test programs no arguments of yours";
            return Err(Usage(text.to_owned()).into());
        }
        Ok(options)
    }

    /// Appends filter and arguments, with `own` before those of the user.
    pub fn pass_on(&self, command: &mut Command, own: &[&str]) {
        command
            .args(&self.filter)
            .arg("--")
            .args(own)
            .args(&self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        Options::parse(&arguments)
    }

    #[test]
    fn options_filter_and_arguments_are_told_apart() {
        let options = parse(&["--long", "storm", "--", "--exact", "--long"]).unwrap();
        assert!(options.long);
        assert_eq!(options.filter.as_deref(), Some("storm"));
        assert_eq!(options.rest, ["--exact", "--long"]);
    }

    #[test]
    fn other_kernels_are_asked_for_with_a_filter_or_without() {
        let options = parse(&["--kernels", "nat"]).unwrap();
        assert!(options.kernels && !options.long);
        assert_eq!(options.filter.as_deref(), Some("nat"));
        assert!(!parse(&["nat"]).unwrap().kernels);
    }

    #[test]
    fn arguments_reach_cargo_behind_the_dashes() {
        let mut command = Command::new("cargo");
        let options = parse(&["storm", "--", "--exact"]).unwrap();
        options.pass_on(&mut command, &["--test-threads=1"]);
        let passed: Vec<_> = command.get_args().collect();
        assert_eq!(passed, ["storm", "--", "--test-threads=1", "--exact"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(parse(&["--lnog"]).is_err());
        assert!(parse(&["one", "two"]).is_err());
        assert!(parse(&["--kernels", "--", "--exact"]).is_err());
    }
}
