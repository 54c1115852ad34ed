import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { configArguments, parseConfig } from "./config-file.ts";

describe("parseConfig()", () => {
  it.each([
    ["tcp-close", ["--tcp-close"]],
    ["  tcp-close  ", ["--tcp-close"]],
    ["verbosity 4", ["--verbosity", "4"]],
    ["verbosity\t4", ["--verbosity", "4"]],
    ["verbosity 4 # loud", ["--verbosity", "4"]],
    ["tcp-close # comment", ["--tcp-close"]],
    ['images-dir "a b"', ["--images-dir", "a b"]],
    ['images-dir "a \\"b\\"" # quoted', ["--images-dir", 'a "b"']],
    ['images-dir ""', ["--images-dir", ""]],
    ["# comment", []],
    ["", []],
    ["   ", []],
  ])("reads %j", (line, words) => {
    expect(parseConfig(line, "f")).toEqual(words);
  });

  it("reads lines in order", () => {
    expect(parseConfig("tcp-close\n\nverbosity 3\n", "f")).toEqual([
      "--tcp-close",
      "--verbosity",
      "3",
    ]);
  });

  it.each(["images-dir a b", 'images-dir "a" b', 'images-dir "a'])("refuses %j", (line) => {
    expect(() => parseConfig(`ok\n${line}`, "f")).toThrow(
      "Unsupported configuration file format: f, line 2",
    );
  });
});

describe("configArguments()", () => {
  let directory: string;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), "config-"));
    mkdirSync(join(directory, ".criu"));
    writeFileSync(join(directory, ".criu", "default.conf"), "verbosity 3\n");
    writeFileSync(join(directory, "env.conf"), "tcp-close\n");
    writeFileSync(join(directory, "given.conf"), "shell-job\n");
  });
  afterEach(() => rmSync(directory, { recursive: true }));

  it("reads the user's file, then the one of the environment", () => {
    const env = { HOME: directory, CRIU_CONFIG_FILE: join(directory, "env.conf") };
    expect(configArguments(["dump"], env).slice(-2)).toEqual([
      ["--verbosity", "3"],
      ["--tcp-close"],
    ]);
  });

  it("reads the file of --config and no other", () => {
    const given = join(directory, "given.conf");
    expect(configArguments(["--config", given], { HOME: directory })).toEqual([["--shell-job"]]);
    expect(configArguments([`--config=${given}`], { HOME: directory })).toEqual([["--shell-job"]]);
  });

  it("reads nothing with --no-default-config", () => {
    expect(configArguments(["--no-default-config"], { HOME: directory })).toEqual([]);
  });

  it("refuses a file that is not there", () => {
    expect(() => configArguments(["--config", join(directory, "none")], {})).toThrow("cannot read");
  });
});
