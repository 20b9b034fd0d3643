//! `sessions`: who is connected.

use std::process::ExitCode;

use super::admin_client::{AdminArgs, AdminClient};
use super::output::{fail, print, table};
use crate::admin::duration;
use crate::admin::model::Sessions;

/// The options of `sessions`.
#[derive(Debug, Clone, clap::Args)]
pub struct SessionsArgs {
    /// Show at most this many, the oldest
    #[arg(long, default_value_t = 1000)]
    pub limit: usize,
    /// Print the JSON of /api/v1/sessions
    #[arg(long)]
    pub json: bool,
    /// Where the proxy is
    #[command(flatten)]
    pub admin: AdminArgs,
}

/// Prints a table of sessions; `kill` takes the number in the first column.
pub fn run(args: &SessionsArgs) -> ExitCode {
    let path = format!("/api/v1/sessions?limit={}", args.limit);
    match AdminClient::new(&args.admin).and_then(|client| client.get::<Sessions>(&path)) {
        Ok(sessions) if args.json => print(&format!("{:#}\n", serde_json::json!(sessions))),
        Ok(sessions) => print(&render(&sessions)),
        Err(error) => fail(&error),
    }
}

fn render(sessions: &Sessions) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".into());
    let rows: Vec<_> = sessions
        .sessions
        .iter()
        .map(|session| {
            vec![
                session.id.to_string(),
                session.client.clone(),
                session.listener.clone(),
                or_dash(&session.tls),
                session.bind_name.clone().unwrap_or_else(|| "(anonymous)".into()),
                or_dash(&session.backend),
                duration(sessions.now.saturating_sub(session.started)),
                session.operations.to_string(),
                session.in_flight.to_string(),
                session.received.to_string(),
                session.sent.to_string(),
            ]
        })
        .collect();
    let header = [
        "SESSION",
        "CLIENT",
        "LISTENER",
        "TLS",
        "BOUND AS",
        "BACKEND",
        "FOR",
        "OPS",
        "IN FLIGHT",
        "BYTES IN",
        "BYTES OUT",
    ];
    let text = table(&header, &rows);
    match sessions.total - sessions.sessions.len().min(sessions.total) {
        0 => text,
        more => format!("{text}… and {more} more\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::model::Session;

    #[test]
    fn sessions_left_out_are_counted() {
        let session = Session { id: 7, client: "10.0.0.1:4000".into(), ..Session::default() };
        let text = render(&Sessions { total: 3, sessions: vec![session], ..Sessions::default() });
        assert!(text.contains("\n7        10.0.0.1:4000"), "{text}");
        assert!(text.contains("(anonymous)"));
        assert!(text.ends_with("… and 2 more\n"), "{text}");
    }
}
