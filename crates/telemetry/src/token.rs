//! The token of control requests: read once from a file that is its owner's affair, and shown nowhere.

use crate::TelemetryError;
use std::fmt;
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Shortest and longest token, in characters.
const CHARACTERS: std::ops::RangeInclusive<usize> = 16..=1024;
/// For others than the owner and the group to do anything.
const OTHERS: u32 = 0o007;

/// What a caller must know. Its debug form does not tell it.
#[derive(Clone)]
pub struct ControlToken(String);

impl ControlToken {
    /// Reads a token, alone in its file but for white space around it.
    ///
    /// # Errors
    /// [`TelemetryError::Token`] if there is no such file, if everybody may read it, or if what is in it is no token.
    pub fn read(path: &Path) -> Result<Self, TelemetryError> {
        let refused = |reason: String| TelemetryError::Token { path: path.to_owned(), reason };
        let unread = |error: std::io::Error| refused(format!("cannot be read: {error}"));
        // A pipe would not end.
        if !std::fs::metadata(path).map_err(unread)?.is_file() {
            return Err(refused("is not a file".to_owned()));
        }
        let file = File::open(path).map_err(unread)?;
        if file.metadata().map_err(unread)?.permissions().mode() & OTHERS != 0 {
            return Err(refused("is open to everybody on this machine; chmod 600 it".to_owned()));
        }
        let mut text = String::new();
        file.take(2 * *CHARACTERS.end() as u64).read_to_string(&mut text).map_err(unread)?;
        let token = text.trim();
        if !(CHARACTERS.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())) {
            let (least, most) = CHARACTERS.into_inner();
            return Err(refused(format!(
                "holds no token: {least} to {most} letters, digits or signs without a space, such as those of `openssl rand -hex 32`"
            )));
        }
        Ok(Self(token.to_owned()))
    }

    /// Whether `given` is the token. How long that takes does not tell how much of it is right.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        let token = self.0.as_bytes();
        let differences = token.iter().zip(given).fold(0, |all, (one, other)| black_box(all | (one ^ other)));
        differences == 0 && token.len() == given.len()
    }
}

impl fmt::Debug for ControlToken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ControlToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn read(text: &str, mode: u32) -> Result<ControlToken, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        ControlToken::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_is_itself_and_nothing_like_it() {
        let token = read(&format!("{TOKEN}\n"), 0o600).unwrap();
        assert!(token.is(TOKEN.as_bytes()));
        for other in ["", "0", "0123456789abcdeg", "0123456789abcdef0", "0123456789abcde"] {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        assert!(!format!("{token:?}").contains(TOKEN));
    }

    #[test]
    fn a_file_that_keeps_no_secret_is_refused_with_the_remedy() {
        for (text, mode, expected) in [
            (TOKEN, 0o644, "chmod 600"),
            (&TOKEN[1..], 0o600, "16 to 1024"),
            ("0123456789 abcdef", 0o600, "without a space"),
            (&TOKEN.repeat(65), 0o600, "16 to 1024"),
            ("", 0o600, "holds no token"),
        ] {
            let error = read(text, mode).unwrap_err();
            assert!(error.contains(expected) && !error.contains("456789"), "{error}");
        }
        assert!(read(&TOKEN.repeat(64), 0o640).is_ok());
        let error = ControlToken::read(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere: cannot be read"), "{error}");
        assert!(ControlToken::read(Path::new("/")).unwrap_err().to_string().contains("is not a file"));
    }
}
