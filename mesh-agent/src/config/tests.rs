use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    run: RunArgs,
}

fn load(flags: &[&str]) -> Result<Config, ConfigError> {
    Command::try_parse_from([&["mesh-agent"], flags].concat()).unwrap().run.load_config()
}

fn settings(text: &str) -> Settings {
    file::parse_settings(Path::new("agent.yaml"), text).unwrap()
}

const LEAST: [&str; 4] = ["--node-name", "node1", "--pod-source", "directory:/pods"];

#[test]
fn flags_beat_the_file_and_the_file_beats_the_default() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.yaml");
    std::fs::write(&path, "nodeName: from-file\nworkers: 3\ndrainTimeout: 1m 30s\naccessLog: json\n")
        .unwrap();
    let config =
        load(&[&LEAST[..], &["--config", path.to_str().unwrap(), "--workers", "2"]].concat()).unwrap();
    assert_eq!(config.node_name, "node1", "the flag wins");
    assert_eq!(config.workers, 2, "the flag wins");
    assert_eq!(config.drain_timeout, Duration::from_secs(90), "the file beats the default");
    assert_eq!(config.access_log, AccessLogFormat::Json);
    assert_eq!(config.trust_domain, "cluster.local", "nobody said anything");
    assert_eq!(config.metrics, "[::]:15020".parse().unwrap());
}

/// The environment is the process's own, so a second process has to tell: clap reads it where it reads flags,
/// and the variable's name is what can be wrong.
#[test]
fn every_setting_has_its_variable() {
    let command = <Command as clap::CommandFactory>::command();
    for argument in command.get_arguments().filter(|argument| argument.get_id() != "print_config") {
        let expected = format!("MESH_AGENT_{}", argument.get_id().as_str().to_uppercase());
        let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
        assert_eq!(variable.as_deref(), Some(expected.as_str()));
    }
}

#[test]
fn waypoints_are_refused_where_nothing_is_said() {
    let of = |flags: &[&str]| load(&[&LEAST[..], flags].concat()).unwrap().waypoints;
    assert_eq!((of(&[]), of(&["--waypoints", "ignore"])), (WaypointMode::Refuse, WaypointMode::Ignore));
    assert_eq!(mesh_api::plan::WaypointHandling::from(of(&[])), mesh_api::plan::WaypointHandling::Refuse);
}

#[test]
fn what_is_printed_reads_back_the_same() {
    let flags =
        ["--admin-socket", "/run/x.sock", "--control", "https://[fd00::1]:15012", "--log", "info,h2=warn"];
    let config = load(&[&LEAST[..], &flags].concat()).unwrap();
    let again = Config::try_from(settings(&config.to_yaml())).unwrap();
    assert_eq!(again, config);
}

#[test]
fn an_unknown_key_is_named_with_its_nearest() {
    let error = file::parse_settings(Path::new("agent.yaml"), "nodeName: a\nacessLog: text\n")
        .unwrap_err()
        .to_string();
    assert_eq!(error, "agent.yaml: unknown key `acessLog`; did you mean `accessLog`?");
    let error = file::parse_settings(Path::new("agent.yaml"), "zzz: 1\n").unwrap_err().to_string();
    assert_eq!(error, "agent.yaml: unknown key `zzz`");
}

#[test]
fn a_bad_value_names_the_file() {
    for text in ["workers: many\n", "admin: here\n", "drainTimeout: soon\n", "control: http://x:1\n", "- a\n"]
    {
        let error = file::parse_settings(Path::new("agent.yaml"), text).unwrap_err().to_string();
        assert!(error.starts_with("agent.yaml: "), "{error}");
    }
    assert_eq!(settings(""), Settings::default(), "an empty file says nothing");
}

#[test]
fn what_can_not_be_meant_is_refused() {
    let error = |flags: &[&str]| load(flags).unwrap_err().to_string();
    assert!(error(&[]).starts_with("--node-name is missing"));
    assert!(error(&["--node-name", "a"]).contains("MESH_AGENT_POD_SOURCE"));
    let with = |flag, value| error(&[&LEAST[..], &[flag, value]].concat());
    assert!(with("--workers", "0").starts_with("--workers:"));
    assert!(with("--admin", "0.0.0.0:15000").contains("loopback"));
    assert!(with("--trust-domain", "Not A Domain").starts_with("--trust-domain:"));
}

#[test]
fn workers_leave_the_applications_their_cores() {
    let expected = [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3), (8, 4), (64, 4)];
    for (cores, workers) in expected {
        assert_eq!(workers_for(cores), workers, "{cores} cores");
    }
}
