//! Templates that people write, from docker's documentation.

use super::*;
use serde_json::json;

fn container() -> Value {
    json!({
        "ID": "0123456789ab", "Names": "web", "Labels": "a=b,c=d", "State": { "Status": "running", "Pid": 7 },
        "Config": { "Labels": { "com.x": "y" }, "Env": ["A=1", "B=2"] },
        "NetworkSettings": {
            "Ports": { "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8080" }] },
            "Networks": { "kiai": { "IPAddress": "10.88.0.2" } },
        },
        "Empty": null, "Number": 0, "Open": true,
    })
}

fn render(text: &str) -> Result<String, TemplateError> {
    Template::parse(text)?.render(&container())
}

#[test]
fn templates_of_dockers_documentation_are_rendered() {
    let table = [
        ("{{.ID}}: {{.Names}}", "0123456789ab: web"),
        ("{{ .State.Status }}", "running"),
        ("{{json .State}}", r#"{"Pid":7,"Status":"running"}"#),
        ("{{.State.Pid}}", "7"),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "10.88.0.2"),
        ("{{range $k, $v := .NetworkSettings.Networks}}{{$k}}={{$v.IPAddress}}{{end}}", "kiai=10.88.0.2"),
        (
            "{{range $p, $conf := .NetworkSettings.Ports}} {{$p}} -> {{(index $conf 0).HostPort}} {{end}}",
            " 80/tcp -> 8080 ",
        ),
        (r#"{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}"#, "8080"),
        (r#"{{index .Config.Labels "com.x"}}"#, "y"),
        (r#"{{.Label "c"}}"#, "d"),
        (r#"{{join .Config.Env ", "}}"#, "A=1, B=2"),
        ("{{range .Config.Env}}{{println .}}{{end}}", "A=1\nB=2\n"),
        ("{{.Config.Env}}", "[A=1 B=2]"),
        ("{{upper .Names}} {{.Names | title}} {{len .Config.Env}}", "WEB Web 2"),
        ("{{if .Open}}yes{{else}}no{{end}}{{if .Number}}x{{end}}", "yes"),
        (r#"{{if eq .State.Status "running"}}up{{end}}"#, "up"),
        ("{{with .State}}{{.Status}} {{$.ID}}{{end}}", "running 0123456789ab"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{.Config.Labels.none}} {{.Empty}}", "<no value> <no value>"),
        (r#"{{printf "%-5s|%3d|%q" .Names .State.Pid .Names}}"#, "web  |  7|\"web\""),
        ("a  {{- .Names -}}  b", "awebb"),
        ("{{.ID}}\\t{{.Names}}", "0123456789ab\tweb"),
        (r#"{{$x := .Names}}{{$x}}{{/* a comment */}}"#, "web"),
        ("{{and .Open .Names}} {{or .Number .Names}} {{not .Open}}", "web web false"),
        ("{{truncate .ID 4}} {{len (split .Labels \",\")}}", "0123 2"),
        ("no action", "no action"),
    ];
    for (template, expected) in table {
        assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let table = [
        ("{{.Nmae}}", "Nmae"),
        ("{{.State.Statsu}}", "Pid, Status"),
        ("{{.ID", "not closed"),
        ("{{if .ID}}x", "without an end"),
        ("{{end}}", "without a beginning"),
        ("{{fly .ID}}", "no function \"fly\""),
        ("{{upper .Number}}", "upper"),
        ("{{index .Config.Env 7}}", "index 7 of a list with 2"),
        ("{{.ID .Names}}", "called like a function"),
        ("{{(.ID}}", "( is not closed"),
        ("{{.ID)}}", ") too many"),
        ("{{\"x}}", "string is not closed"),
        ("{{$y}}", "$y"),
        ("{{}}", "empty"),
        ("{{.ID | }}", "empty"),
        ("{{range .ID}}{{end}}", "neither a list"),
        ("{{.ID ; }}", "';'"),
    ];
    for (template, part) in table {
        let error = render(template).unwrap_err().to_string();
        assert!(error.contains(part), "{template}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "[{}.a-zA-Z0-9$|\"()` -]{0,60}") {
        let _ = render(&text);
        let _ = render(&format!("{{{{{text}}}}}"));
    }
}
