// The launchers in bin/, run from a copy beside a main file that prints what it was given.
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, onTestFinished } from "vitest";

const BIN = join(import.meta.dirname, "..", "bin");
const NODE_DIRECTORY = dirname(process.execPath);
const PRINT = `process.stdout.write(JSON.stringify({ args: process.argv.slice(2), env: process.env }))`;

describe.each(["criu", "reprise"])("bin/%s", (name) => {
  let directory: string;
  let launcher: string;

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), "launchers-"));
    launcher = join(directory, "bin", name);
    mkdirSync(join(directory, "bin"));
    mkdirSync(join(directory, "dist"));
    cpSync(join(BIN, name), launcher);
    writeFileSync(join(directory, "dist", `${name}.cjs`), PRINT);
  });
  afterEach(() => rmSync(directory, { recursive: true }));

  function start(
    command: string,
    options: { args?: string[]; env?: NodeJS.ProcessEnv; cwd?: string } = {},
  ) {
    const path = `${NODE_DIRECTORY}:/usr/bin:/bin`;
    const env = { PATH: path, ...options.env };
    const cwd = options.cwd ?? directory;
    return spawnSync(command, options.args ?? [], { env, cwd, encoding: "utf8" });
  }

  function printed(result: { stdout: string }): { args: string[]; env: Record<string, string> } {
    return JSON.parse(result.stdout) as { args: string[]; env: Record<string, string> };
  }

  it("hands its arguments on as they are", () => {
    const args = ["a b", "", "*", "--", "$x"];
    expect(printed(start(launcher, { args })).args).toEqual(args);
  });

  it("finds its files through relative and absolute links, and from its own directory", () => {
    mkdirSync(join(directory, "links"));
    symlinkSync(`../bin/${name}`, join(directory, "links", "relative"));
    symlinkSync(join(directory, "links", "relative"), join(directory, "links", "absolute"));
    for (const command of [
      join(directory, "links", "relative"),
      join(directory, "links", "absolute"),
    ]) {
      expect(start(command).status).toBe(0);
    }
    expect(start("./relative", { cwd: join(directory, "links") }).status).toBe(0);
    expect(start("sh", { args: [name], cwd: join(directory, "bin") }).status).toBe(0);
    const path = `${join(directory, "links")}:${NODE_DIRECTORY}:/usr/bin:/bin`;
    expect(start("/bin/sh", { args: ["-c", "absolute"], env: { PATH: path } }).status).toBe(0);
  });

  it("finds its files through links to directories", () => {
    const elsewhere = mkdtempSync(join(tmpdir(), "launchers-"));
    onTestFinished(() => rmSync(elsewhere, { recursive: true }));
    symlinkSync(join(directory, "bin"), join(elsewhere, "bin"));
    mkdirSync(join(directory, "inner"));
    symlinkSync(join(directory, "inner"), join(elsewhere, "inner"));
    for (const path of [`bin/${name}`, `inner/../bin/${name}`])
      expect(start(`${elsewhere}/${path}`).status).toBe(0);
  });

  it("takes no code from its caller's environment", () => {
    writeFileSync(join(directory, "evil.cjs"), "process.exit(66)");
    const result = start(launcher, {
      env: {
        NODE_OPTIONS: `--require ${join(directory, "evil.cjs")}`,
        NODE_EXTRA_CA_CERTS: "/none",
        NODE_PATH: directory,
        OTHER: "kept",
      },
    });
    expect(result.status).toBe(0);
    const { env } = printed(result);
    expect(env).not.toHaveProperty("NODE_OPTIONS");
    expect(env).not.toHaveProperty("NODE_EXTRA_CA_CERTS");
    expect(env).not.toHaveProperty("NODE_PATH");
    expect(env["OTHER"]).toBe("kept");
  });

  it("says what to do when the build is missing", () => {
    rmSync(join(directory, "dist"), { recursive: true });
    const result = start(launcher);
    expect(result.status).toBe(1);
    expect(result.stderr).toContain('run "npm ci"');
  });

  it("says what is needed when there is no node", () => {
    const result = start(launcher, { env: { PATH: directory } });
    expect(result.status).toBe(1);
    expect(result.stderr).toContain("Node.js 20.19 or later");
  });
});
