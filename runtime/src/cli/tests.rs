//! Parses command lines.

use clap::CommandFactory;
use clap::Parser;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn dockers_options_are_parsed() {
    for line in [
        "kiai run debian",
        "kiai run -it --rm --name web -e A=1 -e B -v /a:/b:ro -v data:/d -w /x -u 1:2 debian sh -c ls",
        "kiai run -d -p 80:80 -p 127.0.0.1:53:53/udp --cpus 1.5 -m 256m --read-only --tmpfs /t debian",
        "kiai run --network none --cap-drop ALL --cap-add chown --ulimit nofile=1:2 --device /dev/x debian",
        "kiai run --rootfs / --kernel /k --console echo -n hello",
        "kiai run --pull never --entrypoint x --hostname h --env-file f debian -l --all",
        "kiai exec -it web sh -l",
        "kiai ps -aq",
        "kiai logs -f -n 10 -t --since 10m web",
        "kiai stop -t 0 a b",
        "kiai kill -s HUP a",
        "kiai rm -f a",
        "kiai stats --no-stream",
        "kiai --state /s --root /r --namespace n ps --format json",
        "kiai plug web -v /a:/b:ro -v data:/d --network default",
        "kiai plug web --device /dev/loop0:/dev/x:r",
        "kiai unplug web -v /b --network eth1 --network eth2 --device /dev/x",
        "kiai completions bash",
        "kiai create -it --name web -v data:/d -p 80:80 debian sh -c ls",
        "kiai start a b",
        "kiai restart -t 0 a b",
        "kiai restart --time=-1 -s INT a",
        "kiai stop -t -1 -s QUIT a",
        "kiai pause a b",
        "kiai unpause a b",
        "kiai rename a b",
        "kiai port a",
        "kiai port a 53/udp",
        "kiai top a",
        "kiai cp -a a:/b c",
        "kiai start -ai --detach-keys ctrl-x a",
        "kiai attach --no-stdin --sig-proxy=false a",
        "kiai events --since 10m --until 2026-01-31 -f container=a --format json",
        "kiai logs --until 10m a",
        "kiai run -dP --expose 80 -p 80 -p 127.0.0.1::53/udp -p 8000-8010:80-90 debian",
        "kiai run -d -l a=b --label c --restart on-failure:3 --cidfile f debian",
        "kiai run --mount type=bind,src=/a,dst=/b,ro --mount type=tmpfs,dst=/t -v /anonymous debian",
        "kiai run --add-host a:1.2.3.4 --dns 1.1.1.1 --dns-search x --dns-opt ndots:1 debian",
        "kiai run --shm-size 1g --sysctl net.core.somaxconn=1024 --pids-limit -1 --init debian",
        "kiai run --security-opt no-new-privileges --group-add adm --annotation a=b debian",
        "kiai run --stop-signal QUIT --stop-timeout 3 --log-driver none -h box debian ls -h",
        "kiai run -q --pull always --platform linux/amd64 --net none debian --platform x",
        "kiai cp -L - a:/b",
        "kiai top a -o pid,comm",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_follows_the_image_is_the_containers() {
    let cli = parse("kiai run -i debian ls -i --rm").unwrap();
    let Verb::Run(run) = cli.verb else { panic!() };
    let text = format!("{run:?}");
    assert!(text.contains(r#"words: ["debian", "ls", "-i", "--rm"]"#), "{text}");
    assert!(text.contains("rm: false"), "{text}");
}

#[test]
fn nonsense_is_refused() {
    for line in [
        "kiai",
        "kiai fly",
        "kiai run --frob debian",
        "kiai run -m lots debian",
        "kiai run -p x debian",
        "kiai exec web",
        "kiai kill -s FOO a",
        "kiai run -u a:b:c debian",
        "kiai rm",
        "kiai start",
        "kiai restart",
        "kiai create -d debian",
        "kiai run --network host debian",
        "kiai run --network container:web debian",
        "kiai run --platform linux/arm64 debian",
        "kiai run --restart sometimes debian",
        "kiai run --log-driver syslog debian",
        "kiai run --health-cmd true debian",
        "kiai run -c 512 debian",
        "kiai run --shm-size 0 debian",
        "kiai attach a b",
        "kiai plug web",
        "kiai plug web -v /a",
        "kiai unplug web",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}
