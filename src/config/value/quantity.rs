//! Durations and sizes.

use std::time::Duration;

use super::Refusal;

/// `2s`, `15m`, `12h`, `500ms`, `1h30m`; at most a year.
pub(in crate::config) fn duration(text: &str) -> Result<Duration, Refusal> {
    const HELP: &str = "a number with its unit, such as \"500ms\", \"2s\", \"15m\", \"12h\" or \"1h30m\"";
    const MOST: Duration = Duration::from_secs(365 * 86_400);
    let parse = || {
        let mut rest = text;
        let mut sum = Duration::ZERO;
        while !rest.is_empty() {
            let (number, after) = split_number(rest);
            let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
            let (_, milliseconds) = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?;
            sum = sum.checked_add(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(*milliseconds)?))?;
            rest = after;
        }
        Some(sum)
    };
    match parse().filter(|_| !text.is_empty()) {
        Some(duration) if duration > MOST => Err(Refusal::new("longer than a year").help(HELP)),
        Some(duration) => Ok(duration),
        None if text.parse::<u64>().is_ok() => {
            Err(Refusal::new("a duration needs its unit").help(format!("write \"{text}s\"")))
        }
        None => Err(Refusal::new("not a duration").help(HELP)),
    }
}

/// How [`duration`] is written back.
pub(in crate::config) fn show_duration(duration: &Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, milliseconds) in DURATION_UNITS.iter().rev() {
        if rest >= *milliseconds {
            text += &format!("{}{unit}", rest / milliseconds);
            rest %= milliseconds;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// `250 KiB`, `16 MiB`, `1 GiB` or `4096 B`, in bytes.
pub(in crate::config) fn size(text: &str) -> Result<u64, Refusal> {
    let (number, unit) = split_number(text.trim());
    let unit = unit.trim_start();
    let bytes = (SIZE_UNITS.iter().find(|(name, _)| *name == unit))
        .and_then(|(_, bytes)| number.parse::<u64>().ok()?.checked_mul(*bytes));
    bytes.ok_or_else(|| {
        let meant = SIZE_UNITS.iter().find(|(name, _)| {
            let first = unit.chars().next().map(|first| first.to_ascii_uppercase());
            number.parse::<u64>().is_ok() && unit.len() <= 3 && first.is_some_and(|first| name.starts_with(first))
        });
        Refusal::new("not a size").help(match meant {
            Some((name, _)) => format!("write \"{number} {name}\""),
            None => "such as \"250 KiB\", \"16 MiB\", \"1 GiB\", or a number of bytes".into(),
        })
    })
}

/// How [`size`] is written back.
pub(in crate::config) fn show_size(bytes: u64) -> String {
    let (unit, factor) = (SIZE_UNITS.iter().rev().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)))
        .unwrap_or(&SIZE_UNITS[0]);
    format!("{} {unit}", bytes / factor)
}

const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

fn split_number(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::refusal;
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in [("500ms", 500), ("2s", 2000), ("15m", 900_000), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
            assert_eq!(show_duration(&Duration::from_millis(milliseconds)), text);
        }
        assert!(refusal(duration("30")).contains("write \"30s\""));
        assert!(refusal(duration("400d")).contains("a year"));
        for text in ["", "s", "1.5s", "-1s", "2 s", "2S", "2weeks", "99999999999999999999s", "99999999999999999h"] {
            assert!(refusal(duration(text)).contains("not a duration"), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("250 KiB", 256_000), ("16 MiB", 16 << 20), ("1 GiB", 1 << 30), ("1000 B", 1000), ("0 B", 0)]
        {
            assert_eq!(size(text), Ok(bytes));
            assert_eq!(show_size(bytes), text);
        }
        assert_eq!(size("250KiB"), Ok(256_000));
        assert!(refusal(size("250 KB")).contains("write \"250 KiB\""));
        assert!(refusal(size("16m")).contains("write \"16 MiB\""));
        for text in ["", "KiB", "-1 KiB", "1.5 MiB", "1 TiB!", "99999999999999999999 B", "99999999999999 GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_back_reads_the_same(milliseconds in 0u64..31_536_000_000, bytes in 0u64..1 << 40) {
            let length = Duration::from_millis(milliseconds);
            prop_assert_eq!(duration(&show_duration(&length)), Ok(length));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
    }
}
