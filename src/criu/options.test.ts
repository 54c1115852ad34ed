import { describe, expect, it } from "vitest";
import {
  ghostLimit,
  LIST_OPTIONS,
  NEGATABLE_FLAGS,
  OPTIONAL_VALUES,
  parseOptions,
  VALUE_OPTIONS,
} from "./options.ts";

function parse(...args: string[]) {
  return parseOptions([args]);
}

describe("parseOptions()", () => {
  it.each([
    [[], 2],
    [["-v"], 3],
    [["-vv"], 4],
    [["-vvv"], 5],
    [["-v", "-v"], 4],
    [["-v4"], 4],
    [["-v0"], 0],
    [["--verbosity"], 3],
    [["--verbosity=4"], 4],
    [["-verbosity=0"], 0],
    [["-v4", "-v"], 5],
    [["-jv4"], 4],
  ])("reads the verbosity of %j as %i", (args, verbosity) => {
    expect(parse(...args).verbosity).toBe(verbosity);
  });

  it("takes options before and behind the action", () => {
    const options = parse("-D", "imgs", "dump", "-t", "42", "-j");
    expect(options.words).toEqual(["dump"]);
    expect(options.values).toEqual({ "images-dir": "imgs", tree: "42" });
    expect(options.flags.has("shell-job")).toBe(true);
  });

  it("takes a value glued to its short option, behind '=', and as the next word", () => {
    expect(parse("-t42", "-Dimgs").values).toEqual({ tree: "42", "images-dir": "imgs" });
    expect(parse("--tree=42", "--images-dir", "imgs").values).toEqual({
      tree: "42",
      "images-dir": "imgs",
    });
  });

  it("takes an optional value only when it is glued", () => {
    const options = parse("--manage-cgroups", "soft", "--cpu-cap=none", "-x12,13");
    expect(options.values).toEqual({
      "manage-cgroups": "",
      "cpu-cap": "none",
      "ext-unix-sk": "12,13",
    });
    expect(options.words).toEqual(["soft"]);
  });

  it("keeps everything behind -- as words", () => {
    const options = parse("restore", "--exec-cmd", "--", "sh", "-c", "--tree");
    expect(options.words).toEqual(["restore", "sh", "-c", "--tree"]);
    expect(options.flags.has("exec-cmd")).toBe(true);
  });

  it("reads several short options in one word", () => {
    const { flags } = parse("-dSjl");
    expect([...flags].toSorted()).toEqual([
      "file-locks",
      "ghost-fiemap",
      "restore-detached",
      "restore-sibling",
      "shell-job",
    ]);
  });

  it.each([...NEGATABLE_FLAGS])("takes --%s back by its --no- form", (name) => {
    expect(parse(`--${name}`).flags.has(name)).toBe(true);
    expect(parse(`--${name}`, `--no-${name}`).flags.has(name)).toBe(false);
  });

  it("knows --daemon as another name of --restore-detached", () => {
    expect(parse("--daemon").flags.has("restore-detached")).toBe(true);
    expect(parse("-d", "--no-daemon").flags.has("restore-detached")).toBe(false);
  });

  it("lets the last of -R and -s count", () => {
    expect(parse("-R", "-s").leave).toBe("stopped");
    expect(parse("-s", "--leave-running").leave).toBe("running");
  });

  it("collects lists in order", () => {
    expect(parse("--external", "a", "--external=b").lists.external).toEqual(["a", "b"]);
  });

  it("lets a later list of arguments win", () => {
    const options = parseOptions([
      ["--images-dir", "a", "--tcp-close"],
      ["-Db", "--no-tcp-close"],
    ]);
    expect(options.values["images-dir"]).toBe("b");
    expect(options.flags.has("tcp-close")).toBe(false);
  });

  it("completes a beginning that fits one option only", () => {
    expect(parse("--shell").flags.has("shell-job")).toBe(true);
    expect(parse("--leave-r").leave).toBe("running");
    expect(() => parse("--leave")).toThrow("ambiguous");
    // Our own options are written out.
    expect(parse("--str").flags).toContain("stream");
    expect(parse("--strict").flags).toContain("strict");
    expect(() => parse("--expl")).toThrow("unrecognized");
  });

  it("demands a value of every option that needs one", () => {
    for (const name of [...VALUE_OPTIONS, ...LIST_OPTIONS]) {
      expect(() => parse(`--${name}`)).toThrow(`option '--${name}' requires an argument`);
    }
    for (const name of OPTIONAL_VALUES) expect(parse(`--${name}`).values[name]).toBe("");
  });

  it.each([
    [["--bogus"], "unrecognized option '--bogus'"],
    [["-z"], "invalid option -- 'z'"],
    [["-t"], "requires an argument -- 't'"],
    [["--shell-job=1"], "does not allow an argument"],
    [["-t", "1x"], "invalid argument for --tree: 1x"],
    [["-t", "0"], "invalid argument for --tree: 0"],
    [["--timeout", "-1"], "invalid argument for --timeout"],
    [["--ghost-limit", "1T"], "invalid argument for --ghost-limit"],
    [["--file-validation", "md5"], "invalid argument for --file-validation"],
    [["--manage-cgroups=all"], "invalid argument for --manage-cgroups"],
    [["--no-leave-running"], "unrecognized option"],
  ])("refuses %j", (args, message) => {
    expect(() => parse(...args)).toThrow(message);
  });
});

describe("ghostLimit()", () => {
  it.each([
    ["10", 10],
    ["2K", 2048],
    ["3M", 3 * 1024 * 1024],
    ["1G", 1024 ** 3],
  ])("reads %s", (text, bytes) => {
    expect(ghostLimit(parse("--ghost-limit", text))).toBe(bytes);
  });
});
