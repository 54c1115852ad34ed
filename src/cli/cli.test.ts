import { describe, expect, it, vi } from "vitest";
import { RepriseError } from "../errors.ts";
import { lastLines } from "./commands/logs.ts";
import { reportError } from "./report.ts";
import { ageText, bytesText, commandText, table } from "./text.ts";

describe("table()", () => {
  it("aligns columns and leaves no blanks at the end of lines", () => {
    expect(
      table(
        ["A", "B"],
        [
          ["long", "x"],
          ["y", ""],
        ],
      ),
    ).toBe("A     B\nlong  x\ny\n");
  });

  it("shows what would move the cursor", () => {
    expect(table(["A"], [["x\ny\u001b[2J é\u009b"]])).toBe(
      String.raw`A${"\n"}x\x0ay\x1b[2J é\x9b${"\n"}`,
    );
  });
});

describe("bytesText()", () => {
  it.each([
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.0 KB"],
    [1536, "1.5 KB"],
    [10 * 1024, "10 KB"],
    [1024 * 1024, "1.0 MB"],
    [5 * 1024 ** 4, "5.0 TB"],
  ])("writes %i as %s", (bytes, text) => {
    expect(bytesText(bytes)).toBe(text);
  });
});

describe("ageText()", () => {
  it.each([
    [5, "5 s"],
    [120, "2 min"],
    [7200, "2 h"],
    [172_800, "2 d"],
    [-5, "0 s"],
  ])("writes %i seconds as %s", (seconds, text) => {
    expect(ageText(new Date(0).toISOString(), seconds * 1000)).toBe(text);
  });
});

describe("commandText()", () => {
  it("quotes what a shell would split", () => {
    expect(commandText(["sh", "-c", "echo 'a'; b", "--x=1"])).toBe(
      String.raw`sh -c 'echo '\''a'\''; b' --x=1`,
    );
  });
});

describe("lastLines()", () => {
  it.each([
    ["a\nb\nc\n", 2, "b\nc\n"],
    ["a\nb\nc", 2, "b\nc"],
    ["a\nb\n", 5, "a\nb\n"],
    ["a\n", 0, ""],
    ["", 3, ""],
    ["\na\n", 1, "a\n"],
    ["\n\n", 1, "\n"],
  ])("of %j, %i", (text, count, expected) => {
    expect(lastLines(Buffer.from(text), count).toString()).toBe(expected);
  });
});

describe("reportError()", () => {
  function report(error: unknown): { code: number; text: string } {
    let text = "";
    const spy = vi.spyOn(process.stderr, "write").mockImplementation((chunk) => {
      text += String(chunk);
      return true;
    });
    const code = reportError(error, "run");
    spy.mockRestore();
    return { code, text };
  }

  it("prints message and hint, and gives the code's exit code", () => {
    const error = new RepriseError("NO_SUCH_NAME", "there is no task x", { hint: "Look." });
    expect(report(error)).toEqual({ code: 3, text: "error: there is no task x\n  Look.\n" });
  });

  it("explains system errors that nobody expected, and calls none of them a bug", () => {
    const path = "/proc/nowhere/tasks";
    const full = Object.assign(new Error("x"), { code: "ENOSPC", syscall: "write" });
    expect(report(full)).toEqual({
      code: 1,
      text: "error: cannot carry out run: write: ENOSPC\n  The disk is full: make room and try again.\n",
    });
    const denied = Object.assign(new Error("x"), { code: "EACCES", syscall: "mkdir", path });
    expect(report(denied).text).toContain(
      `cannot carry out run: mkdir ${path}: EACCES\n  Run as root`,
    );
  });

  it("gives 1 for other errors", () => {
    expect(report(new RepriseError("SYSCALL", "m")).code).toBe(1);
    expect(report("odd")).toEqual({ code: 1, text: "error: odd\n" });
  });
});
