//! Scientific Python, more than half a gigabyte of it, from Debian's archive.

use std::fs;

use super::Recipe;

pub(super) const RECIPE: Recipe = Recipe {
    command: r#"["python3","/usr/local/bin/fit.py"]"#,
    layer: |tree| {
        tree.install(&[
            "libopenblas0-pthread",
            "python3-matplotlib",
            "python3-numba",
            "python3-numpy",
            "python3-pandas",
            "python3-scipy",
            "python3-skimage",
            "python3-sklearn",
            "python3-statsmodels",
        ])?;
        fs::write(tree.outside().join("usr/local/bin/fit.py"), PROGRAM)?;
        Ok(())
    },
};

/// Uses a little of each, as the first cell of a notebook would.
const PROGRAM: &str = r#"import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.linalg
import scipy.optimize
import scipy.signal
import scipy.stats
import sklearn.cluster
import sklearn.decomposition
import sklearn.ensemble
import sklearn.linear_model
import sklearn.model_selection
import sklearn.preprocessing
import statsmodels.api
from skimage import filters, measure

random = np.random.default_rng(1)
frame = pd.DataFrame(random.normal(size=(2000, 8)), columns=list("abcdefgh"))
frame["y"] = frame["a"] * 2 + frame["b"] + random.normal(size=2000) / 10
train, test = sklearn.model_selection.train_test_split(frame, random_state=1)
forest = sklearn.ensemble.RandomForestRegressor(n_estimators=5, random_state=1)
forest.fit(train.drop(columns="y"), train["y"])
score = forest.score(test.drop(columns="y"), test["y"])
line = statsmodels.api.OLS(frame["y"], frame[["a", "b"]]).fit()
root = scipy.optimize.brentq(lambda x: x**3 - 2, 0, 2)
labels = measure.label(filters.gaussian(random.normal(size=(64, 64)), 2) > 0)
figure, axes = plt.subplots()
axes.hist(frame["y"], bins=20)
picture = io.BytesIO()
figure.savefig(picture, format="png")
print(f"ready {score:.2f} {line.params['a']:.2f} {root:.3f} {labels.max()} {len(picture.getvalue())}", flush=True)
"#;
