// The documentation names every error code, and no other.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { EXIT_CODES } from "../src/cli/report.ts";
import { ERROR_CODES } from "../src/errors.ts";

const DOCS = join(import.meta.dirname, "..", "docs");

it("docs/errors.md explains every error code once and in the order of src/errors.ts", () => {
  const text = readFileSync(join(DOCS, "errors.md"), "utf8");
  const explained = [...text.matchAll(/^\| `([A-Z_]+)` +\| .+ \| .+ \|$/gm)].map(
    (match) => match[1],
  );
  expect(explained).toEqual([...ERROR_CODES]);
});

it("docs/exit-codes.md has the exit code of every error code that is not 1", () => {
  const text = readFileSync(join(DOCS, "exit-codes.md"), "utf8");
  const documented = [...text.matchAll(/^\| (\d+) +\| .* \| (`.+`) +\|$/gm)].flatMap((match) =>
    [...(match[2] ?? "").matchAll(/`([A-Z_]+)`/g)].map(
      (code) => [code[1], Number(match[1])] as const,
    ),
  );
  expect(Object.fromEntries(documented)).toEqual(EXIT_CODES);
});
