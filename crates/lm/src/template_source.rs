//! The text of a chat template before it is compiled: what `transformers` knows beyond Jinja is rewritten, and what would
//! overwhelm a compiler is refused.
//!
//! `{% generation %}` marks what the assistant says, for masks of training data; it shows nothing and opens a scope, so that
//! `{% with %}` stands for it. Nesting follows from the words and signs inside one tag, which are counted; a product of
//! constants, which is computed when the template is compiled, from the numbers in its tag.

/// The longest template; published ones have some ten thousand bytes.
const SOURCE_LIMIT_BYTES: usize = 256 << 10;
/// Words and signs inside one tag.
const TAG_LIMIT_TOKENS: usize = 4000;
/// Bytes that products of constants may come to, all together.
const PRODUCTS_LIMIT_BYTES: f64 = (4 << 20) as f64;

/// The template to compile for `source`.
///
/// # Errors
/// What is too much, with the limit and the line.
pub(crate) fn prepare(source: &str) -> Result<String, String> {
    if source.len() > SOURCE_LIMIT_BYTES {
        return Err(format!("{} bytes long, above the limit of {SOURCE_LIMIT_BYTES}", source.len()));
    }
    let mut prepared = String::with_capacity(source.len());
    let mut products = 0.0;
    let mut rest = source;
    while let Some(place) = rest.find('{').filter(|_| rest.len() > 1) {
        let (text, tag) = rest.split_at(place);
        prepared.push_str(text);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{' | b'%') => {
                let tag = Tag::scan(tag);
                if tag.tokens > TAG_LIMIT_TOKENS {
                    let line = 1 + source[..source.len() - rest.len() + place].matches('\n').count();
                    return Err(format!(
                        "line {line}: a tag of {} words and signs, above the limit of {TAG_LIMIT_TOKENS}",
                        tag.tokens
                    ));
                }
                products += tag.product_bytes();
                tag.length
            }
            _ => 1,
        };
        let (tag, after) = tag.split_at(length);
        let raw = if statement(tag) == Some("raw") { raw_length(after) } else { 0 };
        prepared.push_str(&transparent(tag));
        prepared.push_str(&after[..raw]);
        rest = &after[raw..];
    }
    if products > PRODUCTS_LIMIT_BYTES {
        return Err("a product of constants is too large; write out what is meant".into());
    }
    prepared.push_str(rest);
    Ok(prepared)
}

/// What a tag consists of.
#[derive(Default)]
struct Tag {
    /// Its bytes, braces included.
    length: usize,
    /// Its words, signs and texts in quotes.
    tokens: usize,
    /// Whether there is a `*`, and whether there is a `**`.
    products: (bool, bool),
    /// The product of its numbers.
    numbers: f64,
    /// Whether it has texts or lists, of which a product is many.
    has_sequences: bool,
}

impl Tag {
    /// Reads the tag that `text` begins with, to its end or to that of the text.
    fn scan(text: &str) -> Self {
        let bytes = text.as_bytes();
        let close: &[u8] = if bytes[1] == b'%' { b"%}" } else { b"}}" };
        let mut tag = Self { length: 2, numbers: 1.0, ..Self::default() };
        let mut open = 0usize;
        while tag.length < bytes.len() {
            let rest = &bytes[tag.length..];
            if open == 0 && rest.starts_with(close) {
                tag.length += 2;
                return tag;
            }
            let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || !byte.is_ascii();
            let length = match rest[0] {
                byte if byte.is_ascii_whitespace() => {
                    tag.length += 1;
                    continue;
                }
                b'\'' | b'"' => {
                    tag.has_sequences = true;
                    quoted_length(rest)
                }
                byte if is_word(&byte) => {
                    let length = rest.iter().take_while(|byte| is_word(byte)).count();
                    if byte.is_ascii_digit() {
                        let digits: String = text[tag.length..tag.length + length].replace('_', "");
                        tag.numbers *= digits.parse::<f64>().unwrap_or(f64::INFINITY).max(1.0);
                    }
                    length
                }
                sign => {
                    match sign {
                        b'(' | b'[' | b'{' => open += 1,
                        b')' | b']' | b'}' => open = open.saturating_sub(1),
                        b'*' => tag.products = (true, tag.products.1 || rest.starts_with(b"**")),
                        _ => {}
                    }
                    tag.has_sequences |= sign == b'[';
                    1
                }
            };
            tag.length += length;
            tag.tokens += 1;
        }
        tag
    }

    /// At most so many bytes come of the products in it.
    fn product_bytes(&self) -> f64 {
        match self.products {
            (false, _) => 0.0,
            _ if !self.has_sequences => 0.0,
            (true, true) => f64::INFINITY,
            (true, false) => self.numbers * self.length as f64,
        }
    }
}

/// The length of the text in quotes that `bytes` begins with.
fn quoted_length(bytes: &[u8]) -> usize {
    let mut place = 1;
    while place < bytes.len() {
        match bytes[place] {
            b'\\' => place += 2,
            byte if byte == bytes[0] => return place + 1,
            _ => place += 1,
        }
    }
    bytes.len()
}

/// The one word of a statement that consists of one.
fn statement(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inside.trim_matches(|sign: char| matches!(sign, '-' | '+') || sign.is_whitespace()))
}

/// The tag, or what stands for it.
fn transparent(tag: &str) -> String {
    match statement(tag) {
        Some("generation") => tag.replacen("generation", "with", 1),
        Some("endgeneration") => tag.replacen("endgeneration", "endwith", 1),
        _ => tag.to_owned(),
    }
}

/// The length of `text` up to the tag that ends its raw beginning.
fn raw_length(text: &str) -> usize {
    let mut starts = text.match_indices("{%").map(|(place, _)| place);
    let ends = |place: &usize| {
        let tag = &text[*place..];
        tag.find("%}").is_some_and(|end| statement(&tag[..end + 2]) == Some("endraw"))
    };
    starts.find(ends).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tags_of_generation_are_transparent_wherever_they_are_tags() {
        for (source, expected) in [
            ("a{% generation %}b{% endgeneration %}", "a{% with %}b{% endwith %}"),
            ("{%- generation -%}{%+endgeneration+%}", "{%- with -%}{%+endwith+%}"),
            ("{% if generation %}{{ generation }}{% endif %}", "{% if generation %}{{ generation }}{% endif %}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            (
                "{% raw %}{% generation %}{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{% endraw %}{% with %}",
            ),
            ("{\"a\": {% generation %}{", "{\"a\": {% with %}{"),
            ("{", "{"),
            ("{{ 'é' ~ x", "{{ 'é' ~ x"),
            ("{{ '\\", "{{ '\\"),
        ] {
            assert_eq!(prepare(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn both_sides_of_each_limit() {
        let chain = |filters: usize| format!("\n{{{{ x{} }}}}", "|e".repeat(filters));
        assert!(prepare(&chain(1999)).is_ok());
        assert_eq!(
            prepare(&chain(2000)).unwrap_err(),
            "line 2: a tag of 4001 words and signs, above the limit of 4000"
        );
        // Braces inside a tag do not end it.
        assert!(prepare(&chain(2000).replace("x|", "{1:{}}|")).is_err());
        assert!(prepare(&"x".repeat(SOURCE_LIMIT_BYTES)).is_ok());
        assert!(prepare(&"x".repeat(SOURCE_LIMIT_BYTES + 1)).unwrap_err().contains("262145 bytes"));
        for sound in ["{{ '-' * 80 }}", "{{ 1000000 * 1000000 }}", "{{ x * 1000 }}{{ 'a' ~ 99999999 }}"] {
            assert!(prepare(sound).is_ok(), "{sound}");
        }
        for product in ["{{ 'a' * 99999999 }}", "{{ 'a' * 9**9 }}", "{{ [1] * 99_999_999 }}", "{{ 'a' * 1e12 }}"] {
            assert!(prepare(product).unwrap_err().contains("product"), "{product}");
        }
        assert!(prepare(&"{{ 'a' * 1000 }}".repeat(1000)).unwrap_err().contains("product"));
    }
}
