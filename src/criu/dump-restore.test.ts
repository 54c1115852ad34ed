import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { RepriseError } from "../errors.ts";
import { LogLevel, setLogSink } from "../log.ts";
import { parseOptions } from "./options.ts";
import { scriptRunner } from "./scripts.ts";
import { noteOptions } from "./support.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "criu-"));
});
afterEach(() => {
  setLogSink(undefined);
  rmSync(directory, { recursive: true });
});

describe("scriptRunner()", () => {
  const IMAGES_FD = 9;

  function script(text: string): string {
    const path = join(directory, "script");
    writeFileSync(path, `#!/bin/sh\ncd "\${0%/*}"\n${text}\n`, { mode: 0o755 });
    return path;
  }

  it("runs every script with the step, the images and the pid in its environment", () => {
    const line = '"$CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR ${CRTOOLS_INIT_PID-none} $#"';
    const path = script(`echo ${line} >>out`);
    const runner = scriptRunner({ scripts: [path, path], imagesDirFd: IMAGES_FD });
    runner.script?.("pre-restore");
    runner.script?.("post-restore", 42);
    const images = `/proc/${process.pid}/fd/${IMAGES_FD}`;
    const lines = [`pre-restore ${images} none 0`, `post-restore ${images} 42 0`];
    expect(readFileSync(join(directory, "out"), "utf8").trimEnd().split("\n")).toEqual([
      lines[0],
      lines[0],
      lines[1],
      lines[1],
    ]);
  });

  it.each(["pre-dump", "pre-restore", "post-restore", "setup-namespaces", "network-lock"] as const)(
    "fails the operation when a script fails at %s",
    (action) => {
      expect(() =>
        scriptRunner({ scripts: [script("exit 3")], imagesDirFd: IMAGES_FD }).script?.(action),
      ).toThrow(`failed at ${action}: exit 3`);
    },
  );

  it.each(["pre-resume", "post-resume"] as const)(
    "only logs a script that fails at %s",
    (action) => {
      const logged: string[] = [];
      setLogSink((_level, text) => void logged.push(text));
      scriptRunner({ scripts: [script("exit 3")], imagesDirFd: IMAGES_FD }).script?.(action);
      expect(logged.join()).toContain(`failed at ${action}: exit 3`);
    },
  );

  it("keeps the exit code of a post-dump script that failed", () => {
    const runner = scriptRunner({ scripts: [script("exit 5")], imagesDirFd: IMAGES_FD });
    expect(runner.postDumpStatus()).toBeUndefined();
    expect(() => runner.script?.("post-dump")).toThrow(RepriseError);
    expect(runner.postDumpStatus()).toBe(5);
  });

  it("fails for a script that is not there", () => {
    const missing = join(directory, "missing");
    expect(existsSync(missing)).toBe(false);
    expect(() =>
      scriptRunner({ scripts: [missing], imagesDirFd: IMAGES_FD }).script?.("pre-dump"),
    ).toThrow("exit 127");
  });
});

describe("noteOptions()", () => {
  it("notes options without effect, and is silent about the others", () => {
    const logged: string[] = [];
    setLogSink((_level, text) => void logged.push(text), LogLevel.DEBUG);
    noteOptions(parseOptions([["dump", "-t1", "-D.", "-j", "--link-remap", "-v4", "-R"]]));
    expect(logged).toEqual([]);
    noteOptions(parseOptions([["--allow-uprobes", "--enable-fs=x", "--libdir=x"]]));
    expect(logged).toEqual([
      "option --allow-uprobes changes nothing here",
      "option --libdir changes nothing here",
    ]);
  });
});
