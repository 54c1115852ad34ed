// The program as callers see it: output and exit codes, from source in a process of its own.
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const MAIN = join(import.meta.dirname, "main.ts");
const TSX = import.meta.resolve("tsx");

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "main-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

function criu(...args: readonly string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", TSX, MAIN, ...args], {
    cwd: directory,
    env: { PATH: process.env["PATH"], HOME: directory },
    encoding: "utf8",
  });
  return { status, stdout, stderr };
}

describe("criu", () => {
  it("prints its version", () => {
    expect(criu("-V")).toEqual({ status: 0, stdout: "Version: 4.2\n", stderr: "" });
  });

  it("prints its usage and fails without an action, and prints all help when asked", () => {
    const bare = criu();
    expect(bare.status).toBe(1);
    expect(bare.stdout).toContain("Usage:");
    writeFileSync(join(directory, "bad.conf"), "a b c\n");
    const help = criu("dump", "--config", "bad.conf", "--help");
    expect(help.status).toBe(0);
    expect(help.stdout).toContain("--images-dir");
  });

  it.each([
    [["bogus"], 1, "unknown command: bogus"],
    [["--bogus"], 1, "unrecognized option '--bogus'"],
    [["dump", "-t", "1", "extra"], 1, "excessive parameter for command dump: extra"],
    [["swrk", "99"], 255, "cannot read a request: read: EBADF"],
    [["show"], 255, "the action show is gone"],
    [["dump", "--exec-cmd"], 1, "--exec-cmd is available for the restore action only"],
    [["restore", "--exec-cmd"], 1, "--exec-cmd requires a command"],
    [["dump", "-D", "none"], 1, "cannot open images directory"],
    [["check", "--feature", "bogus"], 1, "Unknown feature bogus"],
  ] as const)("ends %j with %i and says why", (args, status, text) => {
    const result = criu(...args);
    expect(result.status).toBe(status);
    expect(result.stderr).toMatch(/^Error \(criu\/\w+\.ts:\d+\): /);
    expect(result.stderr).toContain(text);
  });

  it("checks the kernel in CRIU's words", () => {
    expect(criu("check")).toEqual({ status: 0, stdout: "Looks good.\n", stderr: "" });
    const feature = criu("check", "--feature", "kcmp_epoll");
    expect(feature).toEqual({ status: 0, stdout: "kcmp_epoll is supported\n", stderr: "" });
  });

  it("logs a refused dump to the file in the work directory, with FAILED at the end", () => {
    const result = criu("dump", "-D", ".", "-o", "dump.log", "-v4", "-t", "1", "--stream");
    expect(result).toEqual({ status: 1, stdout: "", stderr: "" });
    const lines = readFileSync(join(directory, "dump.log"), "utf8").trimEnd().split("\n");
    expect(lines[0]).toMatch(/^\(\d\d\.\d{6}\) Version: 4\.2 /);
    expect(lines.join("\n")).toContain("cannot connect to ");
    expect(lines.at(-1)).toMatch(/^\(\d\d\.\d{6}\) Error \(criu\/run\.ts:\d+\): Dumping FAILED\.$/);
  });

  it("reads the user's configuration file", () => {
    writeFileSync(join(directory, "user.conf"), "stream\nlog-file from.conf.log\n");
    expect(criu("restore", "--config", "user.conf").status).toBe(1);
    expect(readFileSync(join(directory, "from.conf.log"), "utf8")).toContain("Restoring FAILED.");
  });
});
