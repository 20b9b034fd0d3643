//! `man` and `completions`: what packages install, made from the definition of the command line.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_mangen::Man;

use super::Arguments;
use super::output::{fail, print};

const FILES: &str = r".SH FILES
.TP
\fI/etc/ldaps\-proxy/ldaps\-proxy.toml\fR
The configuration. \fBldaps\-proxy check\fR says what is wrong with it.
.TP
\fI/run/ldaps\-proxy/admin.sock\fR
Where \fBstatus\fR, \fBdrain\fR and the other commands find a running proxy.
";

const SIGNALS: &str = r".SH SIGNALS
.TP
SIGTERM, SIGINT
Turn /readyz, serve on for \fBshutdown.delay\fR, take no new connections, let operations finish within \fBshutdown.drain_timeout\fR, tell every client, exit 0. A second one ends now.
.TP
SIGHUP
Reload the configuration and the certificates. What can't be loaded changes nothing.
.TP
SIGUSR1
Open the log files again.
";

/// Prints the manual page in roff: the options of every command, files, signals.
pub fn man() -> ExitCode {
    match page() {
        Ok(page) => print(&page),
        Err(error) => fail(&error.to_string()),
    }
}

/// Prints the completion script of a shell.
pub fn completions(shell: clap_complete::Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "ldaps-proxy", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn page() -> io::Result<String> {
    let mut command = Arguments::command();
    command.build();
    let whole = Man::new(command.clone());
    let mut page = Vec::new();
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    let mut page = String::from_utf8_lossy(&page).into_owned();
    page.push_str(".SH COMMANDS\n");
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help") {
        page.push_str(&format!(".SS \"{}\"\n", subcommand.get_name()));
        page.push_str(&section_of(subcommand)?);
    }
    page.push_str(FILES);
    page.push_str(SIGNALS);
    Ok(page)
}

/// Description, synopsis and options of a command, without headings.
fn section_of(subcommand: &clap::Command) -> io::Result<String> {
    let man = Man::new(subcommand.clone());
    let mut section = Vec::new();
    man.render_description_section(&mut section)?;
    section.extend_from_slice(b".PP\n");
    man.render_synopsis_section(&mut section)?;
    man.render_options_section(&mut section)?;
    let section = String::from_utf8_lossy(&section);
    Ok(section.lines().filter(|line| !line.starts_with(".SH")).flat_map(|line| [line, "\n"]).collect())
}
