// A web project's start in development: loads its tools, compiles a component, serves the page and asks for it once.
"use strict";

const babel = require("@babel/core");
const axios = require("axios");
const dateFns = require("date-fns");
const { Linter } = require("eslint");
const express = require("express");
const lodash = require("lodash");
const moment = require("moment");
const next = require("next");
const React = require("react");
const { renderToString } = require("react-dom/server");
const rxjs = require("rxjs");
const typescript = require("typescript");
const webpack = require("webpack");
const winston = require("winston");

const source = `
type Props = { names: string[] };
const Page = ({ names }: Props) => <ul>{names.map((name) => <li key={name}>{name}</li>)}</ul>;
module.exports = Page;
`;
const plain = typescript.transpileModule(source, {
  compilerOptions: { jsx: typescript.JsxEmit.Preserve, target: typescript.ScriptTarget.ES2022 },
}).outputText;
const { code } = babel.transformSync(plain, {
  presets: [require.resolve("@babel/preset-env"), require.resolve("@babel/preset-react")],
  babelrc: false,
  configFile: false,
});
const complaints = new Linter().verify(code, { rules: { "no-undef": "off" }, parserOptions: { ecmaVersion: 2022 } });
const page = { exports: {} };
new Function("module", "exports", "React", "require", code)(page, page.exports, React, require);

const names = lodash.sortBy([typeof next, typeof rxjs.of, typeof webpack, moment.locale(), dateFns.format(0, "yyyy")]);
const log = winston.createLogger({ silent: true, transports: [new winston.transports.Console()] });
const app = express();
app.get("/", (_, answer) => {
  log.info("asked");
  answer.send(renderToString(React.createElement(page.exports, { names })));
});
const server = app.listen(0, "127.0.0.1", async () => {
  const { data } = await axios.get(`http://127.0.0.1:${server.address().port}/`, { proxy: false });
  console.log(`ready ${data.length} ${complaints.length}`);
  process.exit(0);
});
