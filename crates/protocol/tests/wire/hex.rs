//! Bytes as text: two hexadecimal digits each, with blanks and comments as one likes.

/// The bytes of `text`; what follows a '#' in a line is a comment.
pub(crate) fn parse(text: &str) -> Result<Vec<u8>, String> {
    let digits: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(str::chars)
        .filter(|character| !character.is_whitespace())
        .collect();
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return Err(format!("{} digits are no bytes", digits.len()));
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| {
            let byte = &digits[at..at + 2];
            u8::from_str_radix(byte, 16).map_err(|_| format!("{byte:?} is no byte"))
        })
        .collect()
}

/// `bytes` in lines of 24.
pub(crate) fn print(bytes: &[u8]) -> String {
    let line = |chunk: &[u8]| {
        let words: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        words.join(" ") + "\n"
    };
    bytes.chunks(24).map(line).collect()
}

#[test]
fn text_and_bytes_agree() {
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(parse(&print(&bytes)), Ok(bytes));
    assert_eq!(parse("# nothing\n 0a0B # two\n\n0c"), Ok(vec![10, 11, 12]));
    assert!(parse("0a0").is_err());
    assert!(parse("zz").is_err());
}
