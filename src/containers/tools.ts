// The container tools of this machine: whether their checkpoints work with Reprise, and what is in the way. Each is asked itself.

import { spawnSync } from "node:child_process";
import { existsSync, realpathSync } from "node:fs";
import { delimiter, join } from "node:path";
import type { MachineFact } from "../kernel/machine.ts";

/** One line for each tool that is installed, and one for the `criu` that they find. */
export function containerToolFacts(ownCriu: string): MachineFact[] {
  const facts = [dockerFact(), podmanFact(), runcFact(), crunFact(), containerdFact(), lxcFact()];
  const installed = facts.filter((found) => found !== undefined);
  return installed.length === 0 ? [] : [...installed, criuFact(ownCriu)];
}

/** Tools take the first `criu` of their PATH, which is mostly that of the machine's services. */
function criuFact(own: string): MachineFact {
  const purpose = "container tools, which start it";
  const first = (process.env["PATH"] ?? "")
    .split(delimiter)
    .map((directory) => join(directory, "criu"))
    .find((path) => existsSync(path));
  const advice = `Put a link to ${own} into /usr/local/sbin`;
  if (first === undefined) return fact("criu", purpose, `there is none in PATH. ${advice}`);
  const isOwn = realpathSync(first) === realpathSync(own);
  return fact("criu", purpose, isOwn ? undefined : `${first} is another one. ${advice}`);
}

/** These set the network of a restored container up before there is a process in it (containerd issue 12141). */
function dockerNeedsProcess(version: string): boolean {
  return version === "26.0.0" || Number(version.split(".")[0]) >= 28;
}

function dockerFact(): MachineFact | undefined {
  const client = ask("docker", "--version");
  if (client === undefined) return undefined;
  const server = ask(
    "docker",
    "version",
    "--format",
    "{{.Server.Version}} {{.Server.Experimental}}",
  );
  const purpose = `containers of Docker ${versionIn(client) ?? ""}`;
  const [version = "", experimental] = (server ?? "").split(" ");
  if (server === undefined)
    return fact("docker", purpose, "its daemon does not answer. Start it: systemctl start docker");
  if (experimental !== "true") {
    return fact(
      "docker",
      purpose,
      'checkpoints are off. Put {"experimental": true} into /etc/docker/daemon.json and restart the daemon',
    );
  }
  if (dockerNeedsProcess(version)) {
    return fact(
      "docker",
      purpose,
      `version ${version} restores only containers without a network of their own. Use --network=none or --network=host`,
    );
  }
  return fact("docker", purpose, undefined);
}

function podmanFact(): MachineFact | undefined {
  const version = ask("podman", "--version");
  if (version === undefined) return undefined;
  const purpose = `containers of Podman ${versionIn(version) ?? ""}`;
  const runtime = ask("podman", "info", "--format", "{{.Host.OCIRuntime.Name}}");
  if (runtime === "crun" && !crunHasCheckpoints()) {
    return fact(
      "podman",
      purpose,
      "its runtime crun was built without checkpoints. Use podman --runtime runc, or set it in containers.conf",
    );
  }
  return fact("podman", purpose, undefined);
}

function runcFact(): MachineFact | undefined {
  const version = ask("runc", "--version");
  return version === undefined
    ? undefined
    : fact("runc", `containers of runc ${versionIn(version) ?? ""}`, undefined);
}

function crunFact(): MachineFact | undefined {
  const version = ask("crun", "--version");
  if (version === undefined) return undefined;
  const purpose = `containers of crun ${versionIn(version) ?? ""}`;
  const fault = crunHasCheckpoints() ? undefined : "it was built without checkpoints. Use runc";
  return fact("crun", purpose, fault);
}

function crunHasCheckpoints(): boolean {
  return ask("crun", "--version")?.includes("+CRIU") ?? false;
}

/** Its configuration can name another criu (1.6), or none for the CRI (2.x, enable_criu); that is not looked at here. */
function containerdFact(): MachineFact | undefined {
  const version = ask("containerd", "--version");
  if (version === undefined) return undefined;
  const purpose = `containers of containerd ${versionIn(version) ?? ""}`;
  // Its shim starts runc, whatever else is there.
  const fault =
    ask("runc", "--version") === undefined
      ? "there is no runc in PATH, which it starts. Install it"
      : undefined;
  return fact("containerd", purpose, fault);
}

/** Its command for checkpoints is a part of the package on some systems only. */
function lxcFact(): MachineFact | undefined {
  const version = ask("lxc-start", "--version");
  if (version === undefined) return undefined;
  const fault =
    ask("lxc-checkpoint", "--version") === undefined
      ? "it was built or packaged without lxc-checkpoint. Install the package that has it"
      : undefined;
  return fact("lxc", `containers of LXC ${versionIn(version) ?? ""}`, fault);
}

/** Nobody needs all of these tools, so none is needed. */
function fact(name: string, purpose: string, fault: string | undefined): MachineFact {
  return { name, purpose: purpose.trimEnd(), needed: false, fault };
}

function versionIn(text: string): string | undefined {
  return /\d+\.\d+(?:\.\d+)?/.exec(text)?.[0];
}

const ANSWER_TIMEOUT_MS = 10_000;

/** What a command prints; undefined when it is not installed or fails. */
function ask(program: string, ...args: readonly string[]): string | undefined {
  const { status, stdout } = spawnSync(program, args, {
    encoding: "utf8",
    timeout: ANSWER_TIMEOUT_MS,
    stdio: ["ignore", "pipe", "ignore"],
  });
  return status === 0 ? stdout.trim() : undefined;
}
