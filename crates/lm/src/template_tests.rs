use super::*;

const LLAMA_2: &str = "\
{% if messages[0]['role'] == 'system' %}\
{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}\
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}\
{% endfor %}";

const CHATML: &str = "
{%- for message in messages %}
    {%- if loop.first and messages[0].role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if tools is not none %}TOOLS{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

fn render(source: &str, turns: &[ChatTurn<'_>], add_generation_prompt: bool) -> Result<String, LmError> {
    let template = ChatTemplate::compile(source.to_owned(), "tiny/tokenizer_config.json")?;
    template.render(turns, add_generation_prompt, [("bos_token", "<s>"), ("eos_token", "</s>")].into_iter())
}

#[test]
fn a_llama_2_template_renders_as_it_does_in_python() {
    let turns =
        [ChatTurn::system("Be brief."), ChatTurn::user(" Hi! "), ChatTurn::assistant("Hello."), ChatTurn::user("Bye.")];
    assert_eq!(
        render(LLAMA_2, &turns, true).unwrap(),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi! [/INST] Hello. </s><s>[INST] Bye. [/INST]"
    );
}

#[test]
fn a_chatml_template_renders_as_it_does_in_python() {
    assert_eq!(
        render(CHATML, &[ChatTurn::user("Hi {{ 1 + 1 }} <b>")], true).unwrap(),
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHi {{ 1 + 1 }} <b><|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn lines_that_hold_only_blocks_leave_no_trace() {
    let source = "{% for message in messages %}\n  {% if true %}\n{{ message.content }}\n  {% endif %}\n{% endfor %}\n";
    assert_eq!(render(source, &[ChatTurn::user("a"), ChatTurn::user("b")], false).unwrap(), "a\nb\n");
}

#[test]
fn a_template_that_refuses_a_conversation_says_why_and_where_it_comes_from() {
    let error = render(LLAMA_2, &[ChatTurn::assistant("I first")], true).unwrap_err().to_string();
    assert!(error.contains("tiny/tokenizer_config.json") && error.contains("must alternate"), "{error}");
}

#[test]
fn a_template_that_does_not_compile_is_refused_with_its_file_and_line() {
    let error = render("\n{% for message in %}", &[], false).unwrap_err().to_string();
    assert!(error.contains("tiny/tokenizer_config.json") && error.contains('2'), "{error}");
}

#[test]
fn a_template_that_runs_for_ever_is_stopped() {
    let source = "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}";
    assert!(render(source, &[], false).unwrap_err().to_string().contains("fuel"));
    let source = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    assert!(render(source, &[], false).is_err());
}

#[test]
fn tojson_writes_what_python_writes() {
    let turns = [ChatTurn::user("a <b> & 'c' \"d\" é")];
    let one_line = r#"[{"role": "user", "content": "a <b> & 'c' \"d\" é"}]"#;
    assert_eq!(render("{{ messages | tojson }}", &turns, false).unwrap(), one_line);
    assert_eq!(render("{{ [1, []] | tojson(indent=2) }}", &turns, false).unwrap(), "[\n  1,\n  []\n]");
}

#[test]
fn a_template_has_no_clock_and_can_ask_so() {
    let source = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}no clock{% endif %}";
    assert_eq!(render(source, &[], false).unwrap(), "no clock");
    assert!(render("{{ strftime_now('%Y') }}", &[], false).unwrap_err().to_string().contains("strftime_now"));
}

#[test]
fn the_default_template_is_the_format_of_safe_rlhf() {
    let turns = [ChatTurn::user("Hi?"), ChatTurn::assistant(" Hello."), ChatTurn::user("Bye?")];
    assert_eq!(
        render(CONVERSATION_TEMPLATE, &turns, true).unwrap(),
        "<s>BEGINNING OF CONVERSATION: USER: Hi? ASSISTANT: Hello.</s>USER: Bye? ASSISTANT:"
    );
    let template = ChatTemplate::compile(CONVERSATION_TEMPLATE.to_owned(), "built-in").unwrap();
    let bare = template.render(&turns[..1], true, std::iter::empty()).unwrap();
    assert_eq!(bare, "BEGINNING OF CONVERSATION: USER: Hi? ASSISTANT:");
}

#[test]
fn the_tags_of_generation_show_nothing_and_open_a_scope() {
    let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}{{ m.content + eos_token }}\
        {% endgeneration %}{{ x }}{% else %}{{ '<|user|>' + m.content }}{% endif %}{% endfor %}";
    let turns = [ChatTurn::user("hi"), ChatTurn::assistant("ho")];
    assert_eq!(render(source, &turns, false).unwrap(), "<|user|>hiho</s>");
    // Lines that hold the tag alone leave no trace.
    assert_eq!(render("a\n  {% generation %}\nb\n  {%- endgeneration %}\n", &[], false).unwrap(), "a\nb");
}

#[test]
fn constructs_that_are_not_known_are_named() {
    for (source, expected) in [
        ("{% trans %}x{% endtrans %}", "unknown statement trans"),
        ("{{ 'a' | nosuchfilter }}", "nosuchfilter"),
        ("{{ 'a' is nosuchtest }}", "nosuchtest"),
        ("{{ 'a'.nosuchmethod() }}", "nosuchmethod"),
        ("{{ nosuchfunction() }}", "nosuchfunction"),
        ("{% include 'other' %}", "other"),
    ] {
        let error = render(source, &[], false).unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
}

#[test]
fn operations_under_limits_give_what_they_give_without() {
    let turns = [ChatTurn::user("Hi"), ChatTurn::assistant("Ho"), ChatTurn::user("é")];
    for (source, expected) in [
        ("{{ (1 + 2 * 3) ~ 'a' }} {{ [1] + [2] }} {{ 'ab' * 2 }} {{ 'a' + 'b' }}", "7a [1, 2] abab ab"),
        (
            "{{ messages[-1].content }}{{ messages[0]['role'] }}{{ 'abc'[1] }}{{ messages[9] is defined }}",
            "éuserbFalse",
        ),
        ("{{ 'abcdef'[1:5:2] }}{{ messages[1:] | length }}{{ messages[::-1][0].content }}{{ 'abc'[:2] }}", "bd2éab"),
        ("{{ 1 == 1.0 }} {{ 'a' != 'b' }} {{ 2 < 10 }} {{ 2 >= 3 }} {{ 1 < 2 < 3 }}", "True True True False True"),
        ("{{ 'a' in 'abc' }} {{ 'x' not in ['x'] }} {{ 'role' in messages[0] }}", "True False True"),
        ("{{ messages | map(attribute='content') | join(', ') }}", "Hi, Ho, é"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "2"),
        ("{{ messages | selectattr('role', 'in', ['assistant']) | map('upper') | list | count }}", "1"),
        (
            "{{ 'a-b'.split('-') | join('+') }} {{ ' x '.strip() }} {{ 'aba'.replace('a', 'c') }} {{ 'x'.upper() }}",
            "a+b x cbc X",
        ),
        ("{{ 'a\nb' | indent(2) }} {{ '%s-%d' | format('a', 3) }} {{ 3.14159 | round(2) }}", "a\n  b a-3 3.14"),
        ("{{ 'aXb' | replace('X', '--') }}{{ [1, 2, 3] | batch(2) | list }}", "a--b[[1, 2], [3]]"),
        (
            "{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}{{ v }}{{ loop.cycle(';', '.') }}{% endfor %}",
            "a1;b[2].",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
            "6",
        ),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('ab') }}{{ undefined_thing ~ 'x' }}", "ababx"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | trim | length }}{{ none | default('d', true) }}", "2d"),
        ("{{ messages | length > 2 and not false }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 'b' if false else 'c' }}", "True33c"),
        (
            "{{ 5 is eq 5 }}{{ 'x' is string }}{{ {'a': {'b': 1}}['a']['b'] }}{{ messages | tojson | length > 9 }}",
            "TrueTrue1True",
        ),
    ] {
        assert_eq!(render(source, &turns, false).unwrap(), expected, "{source}");
    }
}

#[test]
fn hostile_templates_are_refused() {
    let loops = |body: &str| {
        format!(
            "{{% set ns = namespace(a='x', b=[1]) %}}{{% for i in range(100000) %}}{body}{{% endfor %}}{{{{ ns.a }}}}"
        )
    };
    let filters = |count: usize| format!("{{{{ 'a'{} }}}}", "|upper".repeat(count));
    for source in [
        loops("{% set ns.a = ns.a ~ ns.a %}"),
        loops("{% set ns.a = ns.a + ns.a %}"),
        loops("{% set ns.a = ns.a * 1000 %}"),
        loops("{% set ns.b = ns.b + ns.b %}") + "{{ ns.b | length }}",
        loops("{% set ns.a = ns.a.replace('x', 'xx') %}"),
        loops("{% set ns.a = ns.a | replace('x', 'xx') %}"),
        loops("{% set ns.a = [ns.a, ns.a] | join(ns.a) %}"),
        loops("{% set ns.a = ns.a.join([ns.a, ns.a]) %}"),
        loops("{% set ns.a = '%s%s' | format(ns.a, ns.a) %}"),
        loops("{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}"),
        loops("{% set ns.a = [ns.a, ns.a] | string %}"),
        loops("{% set ns.a = [ns.a, ns.a] | tojson %}"),
        loops("{% set ns.a = {'k': ns.a, 'l': ns.a} | string %}"),
        loops("{% set ns.a = (ns.a ~ 'xyz')[:] ~ ns.a %}"),
        loops("{% set ns.b = [ns.b] %}") + "{{ ns.b }}",
        loops("{% set ns.b = [ns.b, range(100000) | list | zip(range(100000) | list)] %}"),
        loops("{% set ns.b = [ns.b, range(100000) | list | string] %}"),
        loops("{% set ns.b = [ns.b, range(100000) | map('string') | list] %}"),
        loops("{% set ns.b = [ns.b, [ns.b] | select('sameas', ns.b) | list] %}"),
        loops("{% set ns.b = [ns.b, ns.b] %}") + "{{ ns.b == ns.b }}",
        loops("{% set n = namespace() %}{% set n.x = ns.b %}{% set ns.b = n %}") + "{{ ns.b }}",
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(a='x') %}{% for i in range(99) %}{% set ns.a = f(ns.a) %}{% endfor %}".into(),
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}".into(),
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns | string }}{{ ns ~ 'x' }}".into(),
        "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns | tojson }}".into(),
        "{% set a = namespace() %}{% set a.x = a %}{% set b = namespace() %}{% set b.x = b %}{{ a == b }}".into(),
        "{% set a = namespace() %}{% set a.x = a %}{{ a in [a] }}{{ {'k': 1}[a] }}".into(),
        "{% set a = namespace() %}{% set a.x = a %}{% for i in [1, 2] %}{{ loop.changed(a) }}{% endfor %}".into(),
        "{{ 'a\nb' | indent(3000000000) }}".into(),
        "{{ 'a\nb' | indent(width=3000000000) }}".into(),
        "{{ '%2000000000d' | format(1) }}".into(),
        "{{ '%.2000000000f' | format(1) }}".into(),
        "{{ '%*d' | format(2000000000, 1) }}".into(),
        "{{ '{:2000000000}'.format(1) }}".into(),
        "{{ [1] | batch(3000000000, 'x') | list }}".into(),
        "{{ [1] | slice(3000000000) | list }}".into(),
        "{{ 'a' * 99999999 }}".into(),
        "{{ messages[0].content * 99999999 }}".into(),
        "{{ [1] * 3000000000 | list }}".into(),
        "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}".into(),
        filters(100_000),
        filters(30_000),
        format!("{{{{ {} true }}}}", "not ".repeat(60_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(200_000)),
        format!("{{{{ {}{} }}}}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(100_000)),
        "{% if 0 %}".to_owned() + &"{% elif 0 %}".repeat(20_000),
        "{% for i in range(100000) %}".to_owned() + &"x".repeat(200_000) + "{% endfor %}",
        "{% for i in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}".into(),
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}".into(),
    ] {
        let shown: String = source.chars().take(150).collect();
        let error = render(&source, &[ChatTurn::user("hi")], false).expect_err(&shown).to_string();
        assert!(!error.contains("does not work"), "a panic: {shown}: {error}");
    }
}
