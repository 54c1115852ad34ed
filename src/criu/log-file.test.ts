import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { RepriseError } from "../errors.ts";
import { log, LogLevel, setLogSink } from "../log.ts";
import { formatLine, holdWarnings, logError, openLog, writeHeld } from "./log-file.ts";

describe("formatLine()", () => {
  it.each([
    [LogLevel.ERROR, "(02.000340) Error (a.ts:1): text\n"],
    [LogLevel.WARN, "(02.000340) Warn  (a.ts:1): text\n"],
    [LogLevel.INFO, "(02.000340) text\n"],
    [LogLevel.DEBUG, "(02.000340) text\n"],
  ])("writes level %i as CRIU does", (level, line) => {
    expect(formatLine({ level, text: "text", micros: 2_000_340, place: "a.ts:1" })).toBe(line);
  });

  it("leaves the time out when there is none", () => {
    const line = { level: LogLevel.ERROR, text: "text", micros: undefined, place: "a.ts:1" };
    expect(formatLine(line)).toBe("Error (a.ts:1): text\n");
  });
});

describe("openLog()", () => {
  let directory: string;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), "log-"));
  });
  afterEach(() => {
    setLogSink(undefined);
    rmSync(directory, { recursive: true });
  });

  function linesOf(verbosity: number, write: () => void): string[] {
    const file = join(directory, "x.log");
    openLog({ file, verbosity });
    write();
    return readFileSync(file, "utf8").split("\n").slice(0, -1);
  }

  it("holds warnings back for a while, with their places, but not beyond an error", () => {
    const lines = linesOf(LogLevel.WARN, () => {
      holdWarnings();
      log.warn("first");
      expect(readFileSync(join(directory, "x.log"), "utf8")).toBe("");
      writeHeld();
      holdWarnings();
      log.warn("second");
      log.error("third");
      log.warn("fourth");
    });
    expect(lines.map((line) => line.replace(/^(\w+ +\(.*):\d+\)/, "$1)"))).toEqual(
      ["Warn  first", "Warn  second", "Error third", "Warn  fourth"].map((line) =>
        line.replace(/(\w+)$/, "(criu/log-file.test.ts): $1"),
      ),
    );
  });

  it("holds nothing back where all is told", () => {
    const lines = linesOf(LogLevel.DEBUG, () => {
      holdWarnings();
      log.warn("at once");
    });
    expect(lines).toHaveLength(1);
  });

  function writeAllLevels(): void {
    log.error("e");
    log.warn("w");
    log.info("i");
    log.debug("d");
  }

  it.each([
    [0, 0],
    [1, 1],
    [2, 2],
    [3, 3],
    [4, 4],
    [9, 4],
  ])("writes at verbosity %i the first %i levels", (verbosity, count) => {
    expect(linesOf(verbosity, writeAllLevels)).toHaveLength(count);
  });

  it("names the place in our source for errors and warnings", () => {
    const [error, warning, info] = linesOf(4, writeAllLevels);
    expect(error).toMatch(/^\(\d\d\.\d{6}\) Error \(criu\/log-file\.test\.ts:\d+\): e$/);
    expect(warning).toMatch(/^\(\d\d\.\d{6}\) Warn {2}\(criu\/log-file\.test\.ts:\d+\): w$/);
    expect(info).toMatch(/^\(\d\d\.\d{6}\) i$/);
  });

  it("logs an error's message and hint where the error was made", () => {
    const error = new RepriseError("UNSUPPORTED", "cannot do this", { hint: "Do that." });
    const lines = linesOf(2, () => logError(error));
    expect(lines[0]).toMatch(/^Error \(criu\/log-file\.test\.ts:\d+\): cannot do this$/);
    expect(lines[1]).toMatch(/^Error \(.*\): Do that\.$/);
  });
});
