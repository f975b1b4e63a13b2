//! What decides where a mesh is looked for.

use std::env;

use anyhow::{Result, bail};

use super::{Source, lab};
use crate::cluster::Access;

/// Where a mesh is looked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// Where the kubeconfig leads.
    Cluster,
    /// A lab of this machine.
    Lab(String),
    /// The endpoints given.
    Addresses,
}

/// What the environment has to say.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// `NODEMESH_LAB`.
    pub lab: Option<String>,
    /// Whether there is a kubeconfig, or this is a pod of a cluster.
    pub cluster: bool,
    /// Labs that are up.
    pub labs: Vec<String>,
}

impl Surroundings {
    /// Looks.
    pub fn look() -> Self {
        let lab = env::var("NODEMESH_LAB").ok().filter(|name| !name.is_empty());
        Self { lab, cluster: Access::is_there(), labs: lab::all() }
    }
}

impl Source {
    /// Flags beat the environment, and a lab that it names beats a kubeconfig.
    pub fn choice(&self, surroundings: &Surroundings) -> Result<Choice> {
        let to_cluster = self.kubeconfig.is_some() || self.context.is_some();
        let to_address = !self.agents.is_empty() || (self.control.is_some() && self.lab.is_none());
        if to_cluster && (self.lab.is_some() || to_address) {
            bail!(
                "--kubeconfig and --context lead to a cluster, --lab, --agent and --control elsewhere: give one of them"
            );
        }
        if to_address {
            return Ok(Choice::Addresses);
        }
        if let Some(lab) = &self.lab {
            return Ok(Choice::Lab(lab.clone()));
        }
        match &surroundings.lab {
            _ if to_cluster => Ok(Choice::Cluster),
            Some(lab) => Ok(Choice::Lab(lab.clone())),
            None if surroundings.cluster => Ok(Choice::Cluster),
            None => bail!("{}", nowhere(&surroundings.labs)),
        }
    }
}

fn nowhere(labs: &[String]) -> String {
    let up = match labs {
        [] => String::new(),
        labs => format!(" (up now: {})", labs.join(", ")),
    };
    format!(
        "no mesh to ask. Give a cluster by --kubeconfig PATH or KUBECONFIG, a lab of this machine by --lab [NAME]{up}, or \
         an agent by --agent ADDRESS"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(flags: &[&str]) -> Source {
        use clap::Parser;
        #[derive(Parser)]
        struct Flags {
            #[command(flatten)]
            source: Source,
        }
        Flags::try_parse_from(std::iter::once("meshctl").chain(flags.iter().copied())).unwrap().source
    }

    fn chosen(flags: &[&str], surroundings: &Surroundings) -> Result<Choice, String> {
        given(flags).choice(surroundings).map_err(|error| error.to_string())
    }

    #[test]
    fn a_flag_beats_the_environment_and_a_lab_in_it_beats_the_kubeconfig() {
        let both = Surroundings { lab: Some("x".to_owned()), cluster: true, labs: Vec::new() };
        assert_eq!(chosen(&[], &both), Ok(Choice::Lab("x".to_owned())));
        assert_eq!(chosen(&["--context", "c"], &both), Ok(Choice::Cluster));
        assert_eq!(chosen(&["--lab", "y"], &both), Ok(Choice::Lab("y".to_owned())));
        assert_eq!(chosen(&["--agent", "node1:15000"], &both), Ok(Choice::Addresses));
        let cluster = Surroundings { cluster: true, ..Surroundings::default() };
        assert_eq!(chosen(&[], &cluster), Ok(Choice::Cluster));
    }

    #[test]
    fn lab_without_a_name_is_the_default_one() {
        let nothing = Surroundings::default();
        assert_eq!(chosen(&["--lab"], &nothing), Ok(Choice::Lab("default".to_owned())));
    }

    #[test]
    fn what_contradicts_itself_or_leads_nowhere_is_told() {
        let error = chosen(&["--lab", "--context", "c"], &Surroundings::default()).unwrap_err();
        assert!(error.contains("give one of them"), "{error}");
        let labs = Surroundings { labs: vec!["demo".to_owned()], ..Surroundings::default() };
        let error = chosen(&[], &labs).unwrap_err();
        assert!(error.contains("--kubeconfig") && error.contains("up now: demo"), "{error}");
    }
}
