import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { containerToolFacts } from "./tools.ts";

let dir: string;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "reprise-tools-"));
  vi.stubEnv("PATH", dir);
});

afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(dir, { recursive: true });
});

/** A command that answers by its arguments, and fails at others. */
function install(name: string, answers: Readonly<Record<string, string>>): void {
  const cases = Object.entries(answers).map(([args, text]) => `'${args}') echo '${text}';;`);
  const script = `#!/bin/sh\ncase "$*" in\n${cases.join("\n")}\n*) exit 1;;\nesac\n`;
  writeFileSync(join(dir, name), script);
  chmodSync(join(dir, name), 0o755);
}

function installDocker(version: string, experimental: string): void {
  install("docker", {
    "--version": `Docker version ${version}, build 1`,
    "version --format {{.Server.Version}} {{.Server.Experimental}}": `${version} ${experimental}`,
  });
}

function faultOf(name: string): string | undefined {
  const found = containerToolFacts("/nonexistent/criu").find((fact) => fact.name === name);
  if (found === undefined) throw new Error(`nothing about ${name}`);
  return found.fault;
}

describe("container tools", () => {
  it("are not spoken of where there are none", () => {
    expect(containerToolFacts("/nonexistent/criu")).toEqual([]);
  });

  it.each([
    ["20.10.24", "true", undefined],
    ["20.10.24", "false", /^checkpoints are off\. .*"experimental": true/],
    ["26.0.0", "true", /only containers without a network/],
    ["26.1.5", "true", undefined],
    ["27.5.1", "true", undefined],
    ["28.2.2", "true", /only containers without a network of their own\. Use --network=none/],
  ])("Docker %s, experimental %s", (version, experimental, fault) => {
    installDocker(version, experimental);
    if (fault === undefined) expect(faultOf("docker")).toBeUndefined();
    else expect(faultOf("docker")).toMatch(fault);
  });

  it("Docker whose daemon does not answer", () => {
    install("docker", { "--version": "Docker version 28.2.2" });
    expect(faultOf("docker")).toMatch(/^its daemon does not answer/);
  });

  it("crun with and without checkpoints, and Podman that uses it", () => {
    install("crun", { "--version": "crun version 1.8.1 +SELINUX +YAJL" });
    install("podman", {
      "--version": "podman version 4.3.1",
      "info --format {{.Host.OCIRuntime.Name}}": "crun",
    });
    expect(faultOf("crun")).toMatch(/built without checkpoints/);
    expect(faultOf("podman")).toMatch(/its runtime crun .*--runtime runc/);
    install("crun", { "--version": "crun version 1.8.1 +SELINUX +CRIU +YAJL" });
    expect(faultOf("crun")).toBeUndefined();
    expect(faultOf("podman")).toBeUndefined();
  });

  it("containerd without runc, and LXC without its command for checkpoints", () => {
    install("containerd", { "--version": "containerd github.com/containerd/containerd 1.6.20" });
    install("lxc-start", { "--version": "5.0.2" });
    expect(faultOf("containerd")).toMatch(/no runc/);
    expect(faultOf("lxc")).toMatch(/without lxc-checkpoint/);
    install("runc", { "--version": "runc version 1.1.5" });
    install("lxc-checkpoint", { "--version": "5.0.2" });
    expect(faultOf("containerd")).toBeUndefined();
    expect(faultOf("lxc")).toBeUndefined();
  });

  it("find another criu, or none", () => {
    install("runc", { "--version": "runc version 1.1.5" });
    expect(faultOf("criu")).toMatch(/^there is none in PATH\. Put a link to \/nonexistent\/criu/);
  });
});
