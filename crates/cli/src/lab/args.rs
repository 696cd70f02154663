//! The command line of `rollcall lab`.

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::experiments::ALL;

/// After the options in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  rollcall lab                    what there is
  rollcall lab 99-connect-loop
  rollcall lab --all
  rollcall lab --all --json | jq '.experiments[] | {name, verdict, facts}'

The names with 98 end in \"Address already in use\" (EADDRINUSE), those with 99 in \"Cannot
assign requested address\" (EADDRNOTAVAIL). Each experiment makes the failure happen, says
what the kernel answered, applies the cure, and says what it answered then; all figures
are of this run. Each takes a second or two, in a network namespace of its own: as root,
or as any user where the host allows user namespaces. Elsewhere this host's loopback is
used, with a hundred of its ports, and what can't be shown there is said. Neither a master
nor a slave is needed. Exit codes: 0 all as expected, 1 not, which an unusual kernel or
setting explains, or a bug.";

/// `rollcall lab`.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// The experiments to run
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(ALL.iter().map(|one| one.name)))]
    pub(crate) names: Vec<String>,

    /// Run all of them
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,

    /// List them, and run none
    #[arg(long, conflicts_with_all = ["names", "all"])]
    pub(crate) list: bool,

    /// Use this host's loopback even where a network namespace can be had
    #[arg(long)]
    pub(crate) on_host: bool,

    /// What happened as JSON: {"passed": ..., "experiments": [...]}
    #[arg(long)]
    pub(crate) json: bool,
}
