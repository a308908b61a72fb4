//! Cohorts as a services file writes them, and files of prefixes.

use shifter_common::abi::cohort::MAX_COHORT_PREFIXES;

use super::{
    CohortSpec, Prefix,
    cohort::{CohortPlace, PrefixError},
    file_table::{Table, place},
    tree::{Fault, Node, Value},
};

/// What reads a file that another names, by its whole path.
pub type ReadFile<'a> = dyn FnMut(&str) -> Result<String, String> + 'a;

/// Where cohorts and their prefixes stand in a file.
#[derive(Default)]
pub(super) struct CohortPlaces {
    all: Option<usize>,
    cohorts: Vec<(usize, Vec<usize>)>,
}

impl CohortPlaces {
    pub fn of(&self, place: CohortPlace) -> Option<usize> {
        match place {
            CohortPlace::All => self.all,
            CohortPlace::Cohort(index) => self.cohorts.get(index).map(|(at, _)| *at),
            CohortPlace::Prefix(index, number) => {
                let (at, prefixes) = self.cohorts.get(index)?;
                // All of a file's stand where that is named.
                prefixes
                    .get(number)
                    .or(prefixes.last())
                    .or(Some(at))
                    .copied()
            }
        }
    }
}

/// Reads the list under the key `cohort` of a service.
pub(super) fn parse(
    table: &Table<'_>,
    read: &mut ReadFile<'_>,
) -> Result<(Vec<CohortSpec>, CohortPlaces), Fault> {
    let Some(entry) = table.find("cohort") else {
        return Ok(Default::default());
    };
    let Value::Array(items) = &entry.node.value else {
        let kind = entry.node.value.kind();
        return Err(Fault::new(
            entry.at,
            format!("cohort is {kind}: write [[service.cohort]], a list of tables"),
        ));
    };
    let mut places = CohortPlaces {
        all: Some(entry.at),
        cohorts: Vec::with_capacity(items.len()),
    };
    let mut cohorts = Vec::with_capacity(items.len());
    for item in items {
        let (cohort, prefixes) = cohort(item, read)?;
        cohorts.push(cohort);
        places.cohorts.push((item.at, prefixes));
    }
    Ok((cohorts, places))
}

fn cohort(node: &Node, read: &mut ReadFile<'_>) -> Result<(CohortSpec, Vec<usize>), Fault> {
    let table = Table::of(
        node,
        "a cohort",
        &["name", "pool", "prefixes", "prefixes_file"],
    )?;
    let (name, _) = table.need("name", "what it is called, as name = \"staff\"")?;
    let pool = match table.string("pool")? {
        None | Some(("candidate", _)) => None,
        Some((text, at)) => Some(text.parse().map_err(|_| {
            Fault::new(
                at,
                format!("pool: {text:?} is no pool: write \"blue\", \"green\" or \"candidate\""),
            )
        })?),
    };
    let (prefixes, places) = match (table.find("prefixes"), table.string("prefixes_file")?) {
        (Some(entry), None) => listed(&entry.node)?,
        (None, Some((path, at))) => (from_file(path, at, read)?, vec![at]),
        (Some(_), Some((_, at))) => {
            let text = "prefixes and prefixes_file: write one of them";
            return Err(Fault::new(at, text));
        }
        (None, None) => {
            let text = format!(
                "cohort {name:?} lacks the key prefixes: the clients that it holds, as prefixes = [\"10.1.0.0/16\"], or prefixes_file = \"/etc/shifter/{name}.txt\""
            );
            return Err(Fault::new(node.at, text));
        }
    };
    let spec = CohortSpec {
        name: name.to_owned(),
        pool,
        prefixes: prefixes.into(),
    };
    Ok((spec, places))
}

fn listed(node: &Node) -> Result<(Vec<Prefix>, Vec<usize>), Fault> {
    let Value::Array(items) = &node.value else {
        let kind = node.value.kind();
        return Err(Fault::new(
            node.at,
            format!("prefixes is {kind}: write a list, as [\"10.1.0.0/16\"]"),
        ));
    };
    let mut prefixes = Vec::with_capacity(items.len());
    for item in items {
        let Value::String(text) = &item.value else {
            let kind = item.value.kind();
            return Err(Fault::new(
                item.at,
                format!("a prefix is {kind}: write it in quotes, as \"10.1.0.0/16\""),
            ));
        };
        prefixes.push(
            text.parse()
                .map_err(|error: PrefixError| place(item.at, error))?,
        );
    }
    Ok((prefixes, items.iter().map(|item| item.at).collect()))
}

/// One prefix a line; what follows a '#' is a comment.
fn from_file(path: &str, at: usize, read: &mut ReadFile<'_>) -> Result<Vec<Prefix>, Fault> {
    if !path.starts_with('/') {
        return Err(Fault::new(
            at,
            format!("prefixes_file = {path:?} is no whole path: write one that begins with '/'"),
        ));
    }
    let text = read(path).map_err(|error| Fault::new(at, format!("prefixes_file: {error}")))?;
    let mut prefixes = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let word = line.split('#').next().unwrap_or_default().trim();
        if word.is_empty() {
            continue;
        }
        let prefix = word.parse().map_err(|error: PrefixError| {
            Fault::new(at, format!("prefixes_file: {path}:{number}: {error}"))
        })?;
        prefixes.push(prefix);
        if prefixes.len() > MAX_COHORT_PREFIXES as usize {
            let text =
                format!("prefixes_file: {path} has more than 65,536 prefixes: that is the most");
            return Err(Fault::new(at, text));
        }
    }
    Ok(prefixes)
}
