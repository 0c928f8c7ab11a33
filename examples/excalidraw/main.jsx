import "@excalidraw/excalidraw/index.css";

import { Excalidraw, restoreElements } from "@excalidraw/excalidraw";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

const address = new URLSearchParams(location.search).get("server") ?? "http://127.0.0.1:8000";

async function ask(query, variables, token) {
  const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
  const answer = await fetch(`${address}/graphql`, { method: "POST", headers, body: JSON.stringify({ query, variables }) });
  const { data, errors } = await answer.json();
  if (errors) throw new Error(errors[0].message);
  return data;
}

/** The project in the page's address, else the user's latest, else a new one. */
async function findProject(token) {
  const named = location.hash.slice(1);
  if (named) return named;
  const { projects } = await ask("{ projects(first: 1) { nodes { id } } }", {}, token);
  if (projects.nodes.length) return projects.nodes[0].id;
  const { createProject } = await ask('mutation { createProject(input: { name: "Drawing" }) { id } }', {}, token);
  return createProject.id;
}

function SignIn({ onToken }) {
  const [problem, setProblem] = useState("");
  async function submit(event) {
    event.preventDefault();
    const { email, password, key } = Object.fromEntries(new FormData(event.target));
    try {
      const signIn = "mutation ($email: String!, $password: String!) { signIn(email: $email, password: $password) { token } }";
      onToken(key || (await ask(signIn, { email, password })).signIn.token);
    } catch (error) {
      setProblem(error.message);
    }
  }
  return (
    <main className="sign-in">
      <h1>Excalidraw on Ximler</h1>
      <form onSubmit={submit}>
        <label>Email <input name="email" type="email" autoComplete="username" /></label>
        <label>Password <input name="password" type="password" autoComplete="current-password" /></label>
        <label>or an API key <input name="key" autoComplete="off" /></label>
        <button>Sign in</button>
        <p className="problem" role="alert">{problem}</p>
      </form>
    </main>
  );
}

function Drawing({ token, onEnd }) {
  const [api, setApi] = useState(null);
  const [state, setState] = useState("");
  useEffect(() => {
    if (!api) return;
    let ended = false;
    const drawing = (async () => {
      const { connect } = await import(`${address}/clients/excalidraw.js`);
      const project = await findProject(token);
      if (ended) return null;
      location.hash = project;
      return connect(api, {
        project,
        url: address,
        token,
        restore: (elements) => restoreElements(elements, null),
        onDelay: (problem) => setState(problem ? `Not saved yet: ${problem.detail}` : ""),
        onParked: ({ problem }) => setState(`Not saved: ${problem.detail ?? problem.status}`),
        onEnd: () => onEnd(),
      });
    })();
    drawing.then((made) => (window.drawing = made)).catch((error) => setState(error.message));
    return () => {
      ended = true;
      drawing.then((made) => made?.close()).catch(() => {});
    };
  }, [api, token]);
  return (
    <div className="drawing">
      <Excalidraw
        autoFocus
        handleKeyboardGlobally
        excalidrawAPI={setApi}
        renderTopRightUI={() => <span className="state" role="status">{state}</span>}
      />
    </div>
  );
}

function Page() {
  const [token, setToken] = useState(sessionStorage.getItem("token"));
  function keep(given) {
    if (given) sessionStorage.setItem("token", given);
    else sessionStorage.removeItem("token");
    setToken(given);
  }
  return token ? <Drawing token={token} onEnd={() => keep(null)} /> : <SignIn onToken={keep} />;
}

createRoot(document.getElementById("root")).render(<Page />);
