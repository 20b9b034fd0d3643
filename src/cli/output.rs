//! What the commands print.

use std::io::Write;
use std::process::ExitCode;

/// Prints the text, and success. A reader that has gone away wanted no more.
pub(super) fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// Says what is wrong on standard error, and failure.
pub(super) fn fail(error: &str) -> ExitCode {
    eprintln!("ldaps-proxy: {}", printable_lines(error));
    ExitCode::FAILURE
}

/// A table as text: a header, then rows of as many cells; columns two spaces apart. What came from clients can't move the
/// cursor: control characters are escaped.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let clean: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = clean.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let header = line(header.to_vec());
    clean.iter().fold(header, |text, row| text + &line(row.iter().map(String::as_str).collect()))
}

/// The text with its control characters escaped.
pub(super) fn printable(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(escape).collect()
}

/// The same, line by line.
fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["10.0.1.10:389".into(), "up".into()], vec!["é".into(), String::new()]];
        assert_eq!(table(&["NAME", "STATE"], &rows), "NAME           STATE\n10.0.1.10:389  up\né\n");
    }

    #[test]
    fn a_client_cannot_steer_the_terminal() {
        assert_eq!(printable("cn=\u{1b}[2Jx\r\ny"), r"cn=\u{1b}[2Jx\r\ny");
        assert_eq!(printable_lines("cn=\u{1b}[2Jx\r\u{8}\ny"), "cn=\\u{1b}[2Jx\\r\\u{8}\ny");
    }
}
