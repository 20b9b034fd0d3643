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
    print(&script(shell))
}

fn script(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "ldaps-proxy", &mut script);
    // clap_complete gives a binary with a hyphen two names in bash, and completes no subcommand (clap issue 6421).
    String::from_utf8_lossy(&script).replace("ldaps__subcmd__proxy", "ldaps__proxy")
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

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    /// The commands that users see, with their long options.
    fn commands() -> Vec<(String, Vec<String>)> {
        let mut whole = Arguments::command();
        whole.build();
        let visible = whole.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
        visible
            .map(|command| {
                let options = command.get_arguments().filter(|argument| !argument.is_hide_set());
                let names = options.filter_map(|option| option.get_long().map(str::to_owned)).collect();
                (command.get_name().to_owned(), names)
            })
            .collect()
    }

    #[test]
    fn the_manual_has_every_command_with_its_options() {
        let page = page().expect("written to memory").replace("\\-", "-");
        let sections: Vec<_> = page.split("\n.SS \"").skip(1).collect();
        let commands = commands();
        assert_eq!(sections.len(), commands.len());
        assert!(commands.iter().map(|(_, options)| options.len()).sum::<usize>() > 10);
        for ((name, options), section) in commands.iter().zip(sections) {
            assert!(section.starts_with(&format!("{name}\"\n")), "{name}: {section}");
            for option in options {
                assert!(section.contains(&format!("--{option}")), "{name} --{option}: {section}");
            }
        }
    }

    #[test]
    fn the_shells_complete_every_command_with_its_options() {
        let [bash, zsh, fish] = [Shell::Bash, Shell::Zsh, Shell::Fish].map(script);
        for (name, options) in commands() {
            let of_bash =
                part(&bash, &format!("        ldaps__proxy__subcmd__{})", name.replace('-', "__subcmd__")), ";;\n");
            let of_zsh = part(&zsh, &format!("({name})\n_arguments"), "\n;;\n");
            let of_fish: Vec<_> =
                fish.lines().filter(|line| line.contains(&format!("using_subcommand {name}\""))).collect();
            for option in options {
                let long = format!("--{option}");
                assert!(of_bash.split([' ', '"']).any(|word| word == long), "bash: {name} {long}: {of_bash}");
                assert!(of_zsh.contains(&long), "zsh: {name} {long}: {of_zsh}");
                let long = format!(" -l {option}");
                assert!(of_fish.iter().any(|line| line.contains(&long)), "fish: {name} --{option}: {of_fish:?}");
            }
        }
    }

    /// What stands in `script` between a command's heading and the end of its case.
    fn part<'a>(script: &'a str, heading: &str, end: &str) -> &'a str {
        let (_, after) = script.split_once(heading).unwrap_or_else(|| panic!("no {heading:?} in {script}"));
        after.split_once(end).expect("a case has an end").0
    }
}
